"""`python -m frcnn_jax NAME ...`: the console command `frcnn`."""

from frcnn_jax.cli import main

if __name__ == "__main__":
    main()
