"""Pixel conventions of the networks."""

import numpy as np

CAFFE_MEANS = np.array([102.9801, 115.9465, 122.7717])  # BGR, of pixels in [0, 255]
