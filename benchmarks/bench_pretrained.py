"""Time the detector in the package, proposals included:

    python benchmarks/bench_pretrained.py [--image PHOTO] [--repeat 5]

Each size of the photograph runs in a process of its own, which shows what a first use costs: imports and weights, and
the first detection, of which the share of XLA's compilation is given; then the median of the next ones. The default
photograph is the one of Grace Hopper that matplotlib ships.
"""

import argparse
import statistics
import subprocess
import sys
import time

SIZES = ((480, 640), (3024, 4032))


def measure(photograph: str, rows: int, columns: int, repeat: int) -> None:
    """Print the times for a photograph resized to this many pixels."""
    began = time.perf_counter()
    import jax
    import numpy as np
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    from frcnn_jax import Detector, load_image

    compiling: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if "backend_compile" in event:
            compiling.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    detector = Detector.pretrained()
    loaded = time.perf_counter()
    image = Image.fromarray(load_image(photograph or get_sample_data("grace_hopper.jpg", asfileobj=False)))
    array = np.asarray(image.resize((columns, rows), Image.Resampling.BICUBIC))
    times = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        found = detector(array)
        times.append(time.perf_counter() - start)
    print(
        f"{columns}x{rows}: imports and weights {loaded - began:.1f} s, first detection {times[0]:.1f} s, of which XLA "
        f"{sum(compiling):.1f} s; then {statistics.median(times[1:]):.2f} s; {len(found.boxes)} boxes"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="", metavar="PHOTO")
    parser.add_argument("--repeat", type=int, default=5, help="detections after the first; default: %(default)s")
    parser.add_argument("--size", type=int, nargs=2, metavar=("ROWS", "COLUMNS"), help="this size alone")
    args = parser.parse_args()
    if args.size:
        rows, columns = args.size
        measure(args.image, rows, columns, args.repeat)
        return
    for size in SIZES:
        given = ["--image", args.image, "--repeat", str(args.repeat), "--size", *map(str, size)]
        subprocess.run([sys.executable, __file__, *given], check=True)


if __name__ == "__main__":
    main()
