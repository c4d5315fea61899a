"""Settings of grids that take seconds, for the tests of what is done with a grid."""

GRID = {
    "models": ["vgg-late", "vgg-att3-concat-dp"],
    "seeds": [1, 0],
    "width": 1 / 32,
    "train_limit": 64,
    "test_limit": 40,
    "epochs": 1,
    "batch_size": 32,
    "device": "cpu",
}
