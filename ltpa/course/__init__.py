"""One module for each notebook, and what they share: `setup`, `drive`, `grid` (runs) and `effects` (comparisons).

00 `scratch` (with `exercises`), 01 `training`, 02 `attention_maps`, 03 `ablation` (with `global_feature`),
04 `map_quality`, 05 `query`, 06 `robustness`, 07 `transfer`. Nothing outside this folder imports it.
`python -m ltpa.course.mark FOLDER` marks submitted notebooks 00.
"""
