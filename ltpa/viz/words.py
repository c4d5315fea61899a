"""Words for the names of models and methods, where readers see them."""

import re

METHOD_NAMES = {  # of the methods of `ltpa.explain`
    "gradcam": "Grad-CAM",
    "saliency": "saliency",
    "integrated_gradients": "integrated gradients",
    "occlusion": "occlusion",
    "cam": "CAM",
    "attention": "attention",
}
_PLAIN = {
    "vgg": "plain VGG",
    "vgg-late": "no attention",
    "vgg-late-norm": "no attention, norm",
    "vgg-gap": "average pooling",
    "vgg-pan": "progressive attention",
    "rn164": "ResNet-164",
}
_CONTROLS = {"uniform": "equal weights", "static": "one map for all", "permuted": "permuted weights"}
_FEATURES = {": g_s": ", descriptors", ": g": ", global feature"}
_NAME = re.compile(r"([\w.-]+)(.*)", re.DOTALL)
_ATTENTION = re.compile(r"(?P<trunk>.+?)-att(?P<levels>\d*)-(?P<combine>concat|indep)-(?P<score>[a-z]+)")


def model_in_words(name: str) -> str:
    """Return a model's name in words: "attention pc, 3 levels" for "vgg-att3-concat-pc"; other names as they are.

    What follows the name, such as a normalizer, is kept.
    """
    if not (parts := _NAME.fullmatch(name)):
        return name
    start, end = parts.groups()
    for symbol, words in _FEATURES.items():
        if end.startswith(symbol):
            end = words + end.removeprefix(symbol)
            break
    end = f",{end}" if end.startswith(" ") else end
    if start in _PLAIN:
        return _PLAIN[start] + end
    if not (match := _ATTENTION.fullmatch(start)):
        return name
    trunk = "" if match["trunk"] == "vgg" else _PLAIN.get(match["trunk"], match["trunk"]) + ", "
    levels = "" if not match["levels"] else f", {match['levels']} level{'' if match['levels'] == '1' else 's'}"
    if match["score"] in _CONTROLS:
        score, levels = _CONTROLS[match["score"]], levels or ", 1 level"
    else:
        score = f"attention {match['score']}"
    return f"{trunk}{score}{levels}{', separate' if match['combine'] == 'indep' else ''}{end}"
