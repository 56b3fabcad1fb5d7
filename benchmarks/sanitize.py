"""Runs the small cases of every op through every backend of ours on a GPU once, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck --error-exitcode 1 python -m benchmarks.sanitize

PyTorch must hand out memory piece by piece for a read beyond a tensor to be seen: this sets
PYTORCH_NO_CUDA_MEMORY_CACHING before torch is imported.
"""

from __future__ import annotations

import os
import sys

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

import torch

from setr_fast.ops import OPS
from setr_fast.ops._op import Draw

OURS = ("native", "native_fused", "triton", "triton_atomic")


def main() -> int:
    """Return 0 if something ran; what it did wrong is for the sanitizer to say."""
    if not torch.cuda.is_available():
        print("sanitize: needs a CUDA device")
        return 1
    runs = 0
    for op in OPS.values():
        for backend in op.backends:
            if backend.device != "cuda" or backend.name not in OURS:
                continue
            for case in [c for c in op.cases() if not c.bench]:
                for dtype in (torch.bfloat16, torch.float32) if op.rounds else (torch.float32,):
                    args = case.make(Draw.on("cuda", dtype))
                    if op.refusals(backend, *args):
                        continue
                    op.run(backend.name, *args)
                    torch.cuda.synchronize()
                    print(f"{op.name}/{backend.name} {case.name} {str(dtype)[6:]}")
                    runs += 1
    return 0 if runs else 1


if __name__ == "__main__":
    sys.exit(main())
