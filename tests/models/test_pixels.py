import numpy as np

from frcnn_jax.models.pixels import PixelNorm

IMAGE = np.array([[[10, 20, 30], [255, 0, 128]]], np.uint8)  # RGB


def test_by_default_bgr_less_caffes_means():
    got = PixelNorm()(IMAGE)
    assert got.dtype == np.float32
    by_hand = [[30 - 102.9801, 20 - 115.9465, 10 - 122.7717], [128 - 102.9801, -115.9465, 255 - 122.7717]]
    np.testing.assert_allclose(got[0], by_hand, rtol=1e-6)


def test_the_mean_goes_first_and_both_are_in_the_given_order():
    got = PixelNorm("RGB", mean=(10, 0, 20), std=(5, 2, 0.5))(IMAGE)
    np.testing.assert_allclose(got, [[[0, 10, 20], [49, 0, 216]]])
    got = PixelNorm("BGR", mean=(10, 0, 20), std=(5, 2, 1))(IMAGE)
    np.testing.assert_allclose(got, [[[4, 10, -10], [23.6, 0, 235]]], rtol=1e-6)
