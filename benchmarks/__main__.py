"""Run the benchmarks (``make bench``). Most times are medians of several runs, in which compared functions take turns."""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")


def main() -> None:
    """Run the benchmarks named on the command line, or all."""
    from . import attribution, compute, dataset, gpu, occlusion, streaming, style, synthesis

    modules = (compute, streaming, occlusion, attribution, dataset, synthesis, style, gpu)
    groups = {module.__name__.rpartition(".")[2]: module.main for module in modules}
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("groups", nargs="*", choices=[[], *groups], help="benchmarks to run; all by default")
    for name in parser.parse_args().groups or groups:
        print(f"\n== {name} ==")
        groups[name]()


if __name__ == "__main__":
    main()
