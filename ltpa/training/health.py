"""Problems a user must know of after an epoch: equal predictions, collapsed or uniform maps."""

from collections.abc import Mapping

from torch import Tensor

# Six healthy runs on "shapes" (1/8 width, 5 epochs; pc, dp and add, softmax and sigmoid) were measured on 500 test
# images: at every level, conv7 included, some image's strongest position had 4.1 times the even share or more, and some
# image's had 0.12 of the weight or less. So a healthy run meets neither limit, as each must be met in every image.
UNIFORM = 1.1  # times the even share: a map whose strongest position has less is uniform
COLLAPSED = 0.95  # of a map's weight: a map is collapsed if its strongest position has more
COLLAPSED_MAPS, UNIFORM_MAPS = "collapsed", "uniform"


def problems(labels: Tensor, predictions: Tensor, strongest: Mapping[str, tuple[Tensor, int]]) -> list[str]:
    """Return what is wrong in all test images, and what to try; one healthy image is enough for no problem.

    Args:
        labels, predictions: (N,), indices into the classes.
        strongest: by level, the share (N,) of each map's weight at its strongest position (NaN for a map without any
            weight), and the number of positions.
    """
    found = []
    if len(labels.unique()) > 1 and len(predictions.unique()) == 1:
        found.append(
            "every test image is taken for the same class. Early in a run this may pass; otherwise try a lower "
            "learning_rate, precision='fp32', or more epochs, and check whether the labels are right"
        )
    advice = {
        COLLAPSED_MAPS: f"in every test image one position has more than {COLLAPSED:.0%} of the weight. Try a lower "
        "learning_rate, normalizer='sigmoid', or a model with sdp, pc or add in place of dp",
        UNIFORM_MAPS: f"in no test image has a position {UNIFORM} times the even share, so its maps say nothing. Try "
        "more epochs, or a model with fewer levels (att2, att)",
    }
    found += [f"attention at {level} is {defect}: {advice[defect]}" for level, defect in map_defects(strongest).items()]
    return found


def map_defects(strongest: Mapping[str, tuple[Tensor, int]]) -> dict[str, str]:
    """Return the levels whose maps are `COLLAPSED_MAPS` or `UNIFORM_MAPS` in all test images; arguments as above."""
    defects = {}
    for level, (shares, positions) in strongest.items():
        if bool((shares > COLLAPSED).all()):
            defects[level] = COLLAPSED_MAPS
        elif bool((shares * positions < UNIFORM).all()):
            defects[level] = UNIFORM_MAPS
    return defects
