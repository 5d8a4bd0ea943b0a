"""Clips per second of every net on its default clips, fp32 and the device's default precision, decoding aside. Prints JSON.

Weights are random, which changes no timing. One warm-up, then the median of three batches.

    python benchmarks/nets.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch

from har_pipeline import HarError, Stream, all_nets, build_extractor, keep_freed_memory


def clips_per_second(name: str, stream: Stream, precision: str, device: str) -> tuple[float, str]:
    """Return clips/s and the precision that was used."""
    extractor = build_extractor(name, stream=stream, weights="random", device=device, precision=precision)
    clip_len, size = extractor.input.clips.clip_len, extractor.input.shape[0]
    count = max(1, (16 if extractor.device.type == "cpu" else 512) // clip_len)
    channels = 2 if stream == "flow" else 3
    clips = torch.randint(0, 255, (count, clip_len, size, size, channels), dtype=torch.uint8)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        extractor(clips.float() if stream == "flow" else clips).cpu()
        seconds.append(time.perf_counter() - started)
    return count / statistics.median(seconds[1:]), extractor.precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--nets", nargs="+", help="some of them; default: all")
    args = parser.parse_args()
    device = args.device
    keep_freed_memory()
    rows = []
    for net in all_nets().values():
        if args.nets and net.name not in args.nets:
            continue
        try:
            net.require()
        except HarError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        for stream in net.inputs:
            fp32, _ = clips_per_second(net.name, stream, "fp32", device)
            default, precision = clips_per_second(net.name, stream, "auto", device)
            row = {"net": net.name, "stream": stream, "fp32": round(fp32, 2), "default": round(default, 2)}
            rows.append({**row, "default_precision": precision})
    print(json.dumps({"benchmark": "nets", "threads": torch.get_num_threads(), "clips_per_s": rows}, indent=2))


if __name__ == "__main__":
    main()
