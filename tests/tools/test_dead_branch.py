"""The command behind docs/dead_branch.md."""

from tests.tools import dead_branch


def test_only_pc_with_softmax_has_a_dead_branch(capsys, tmp_path):
    sums = {kind: dead_branch.gradients(*kind, width=1 / 32) for kind in dead_branch.KINDS}
    for kind, by_layer in sums.items():
        alive = sum(value for layer, value in by_layer.items() if layer not in dead_branch.DEAD)
        dead = [by_layer[layer] / alive for layer in dead_branch.DEAD]
        assert (max(dead) < 1e-12) if kind == ("pc", "softmax") else (min(dead) > 1e-6), kind
        assert min(by_layer[f"conv{number}"] for number in range(1, 14)) > 0
