"""One framework and dtype in a process of its own: reads commands as lines of JSON, answers each with one.

`benchmarks/extraction.py` starts these; a process apart keeps each engine's memory, threads and libraries its own.
"""

import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxprobe.host.progress import peak_memory

# Parts that a sample has at least (a shard of ours is as long as many batches), unless they take LONGEST times as long
# as a sample should.
LEAST_PARTS = {"torch": 3, "jax": 1}
LONGEST = 5


class Worker:
    """The model of one framework and dtype, with the engines that run it. Public methods are commands."""

    def __init__(self, framework: str, dtype: str, model: str):
        self.framework, self.dtype, self.model_name = framework, dtype, model
        self.engines: dict[str, Any] = {}

    def load(self) -> dict[str, Any]:
        began = time.perf_counter()
        about = self._load_torch() if self.framework == "torch" else self._load_jax()
        return {"load_s": time.perf_counter() - began, **about}

    def _load_torch(self) -> dict[str, Any]:
        import torch

        from benchmarks.baselines import hugging_face
        from jaxprobe.models.files.source import find_model

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = hugging_face.load(find_model(self.model_name).path, getattr(torch, self.dtype), self.device)
        blas = {"mkl": torch.backends.mkl.is_available(), "onednn": torch.backends.mkldnn.is_available()}
        return {
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "matmul": "cuBLAS" if self.device == "cuda" else ", ".join(name for name, there in blas.items() if there),
            "precision": f"float32_matmul_precision={torch.get_float32_matmul_precision()}",
        }

    def _load_jax(self) -> dict[str, Any]:
        import jax

        from jaxprobe.mesh import make_mesh
        from jaxprobe.models.load import load_model

        self.device = "cpu" if jax.default_backend() == "cpu" else jax.default_backend()
        self.model = load_model(self.model_name, dtype=self.dtype, mesh=make_mesh({"data": 1}))
        jax.block_until_ready(jax.tree.leaves(self.model.weights))
        return {
            "device": jax.devices()[0].device_kind,
            "threads": len(os.sched_getaffinity(0)),
            "matmul": "XLA",
            "precision": "matmul precision=highest, sums in float32",
        }

    def rates(self, shapes: dict[str, tuple[int, int, int]], rows: int) -> dict[str, Any]:
        """GFLOP/s of each shape; JAX also over a scan of the model's own layers."""
        from benchmarks import rates

        if self.framework == "torch":
            return {"matmul": rates.torch_rates(shapes, self.dtype, self.device)}
        scan = rates.jax_scan_rate(self.model.config, self.dtype, rows)
        return {"matmul": rates.jax_rates(shapes, self.dtype), "scan": scan}

    def prepare(self, engine: str, tokens: str, seconds: float, seed: int) -> dict[str, Any]:
        """Plans a table, compiles, and draws the parts that every round will time: about ``seconds`` of them."""
        began = time.perf_counter()
        self._plan(engine, tokens)
        plan_s = time.perf_counter() - began
        running, tried = self.engines[engine], {}
        began = time.perf_counter()
        if hasattr(running, "search_size"):
            tried = running.search_size()
        search_s, middle = time.perf_counter() - began, len(running.slots()) // 2
        first_s = self._run(engine, [middle])["seconds"]
        part_s = first_s if first_s > seconds else self._run(engine, [middle])["seconds"]
        least = min(LEAST_PARTS[self.framework], max(1, int(LONGEST * seconds / part_s)))
        sample = systematic_sample(len(running.slots()), max(round(seconds / part_s), least), seed)
        began = time.perf_counter()
        self._run(engine, running.warm_parts(sample))
        slots, entities = running.slots(), running.entities()
        return {
            "plan_s": plan_s,
            "search_s": search_s,
            "tried": tried,
            "warm_up_s": first_s + time.perf_counter() - began,
            "settings": running.settings(),
            "extra_flops": running.extra_flops,
            "slots": sum(slots) + running.once,
            "parts": len(slots),
            "sample": {
                "parts": sample,
                "slots": sum(slots[part] for part in sample),
                "entities": sum(entities[part] for part in sample),
            },
        }

    def run(self, engine: str, parts: list[int] | None) -> dict[str, float]:
        """Times some parts, or all: seconds, and the process's peak memory meanwhile."""
        return self._run(engine, list(range(len(self.engines[engine].slots()))) if parts is None else parts)

    def states(self, engine: str, tokens: str, out: str) -> dict[str, Any]:
        """Writes all states of a small table, in float32, for the comparison with the reference."""
        ids, starts = _read_tokens(tokens)
        if engine == "reference":
            from benchmarks.baselines.hugging_face import reference_states

            sequences = [ids[a:b].tolist() for a, b in itertools.pairwise(starts)]
            found = reference_states(self.model, sequences)
        else:
            self._plan(engine, tokens)
            running = self.engines[engine]
            found = {}
            for rows, states in running.run(range(len(running.slots()))):
                for name, state in zip(running.states, states, strict=True):
                    state = state.float().numpy() if self.framework == "torch" else state.astype(np.float32)
                    found.setdefault(name, np.full((len(starts) - 1, state.shape[1]), np.nan, np.float32))[rows] = state
        np.savez(out, **found)
        return {}

    def _plan(self, engine: str, tokens: str) -> None:
        if engine not in self.engines:
            self.engines[engine] = self._make(engine)
        self.engines[engine].plan(*_read_tokens(tokens))

    def _make(self, engine: str) -> Any:
        if self.framework == "jax":
            from benchmarks.engines import JaxProbe

            return JaxProbe(self.model)
        from benchmarks.baselines.paper_loop import PaperLoop
        from benchmarks.baselines.traced import NNsight, TransformerLens
        from benchmarks.baselines.tuned import Tuned

        if engine == "paper_loop":
            return PaperLoop(self.model)
        if engine == "transformer_lens":
            from jaxprobe.models.load import open_model

            return TransformerLens(self.model, open_model(self.model_name).tokenizer)
        if engine == "nnsight":
            return NNsight(self.model)
        return Tuned(self.model, cache_prefix=engine.startswith("prefix"), compiled=engine.endswith("compiled"))

    def _run(self, engine: str, parts: list[int]) -> dict[str, float]:
        self._reset_peak()
        began = time.perf_counter()
        for _ in self.engines[engine].run(parts):
            pass  # each part's states are on the host when it is handed out
        return {"seconds": time.perf_counter() - began, "peak_bytes": self._peak()}

    def _reset_peak(self) -> None:
        if self.framework == "torch" and self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        elif Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")

    def _peak(self) -> int:
        """Bytes: the device's own count on an accelerator (JAX's since its start), resident memory on a CPU."""
        if self.device != "cpu":
            if self.framework == "torch":
                import torch

                return torch.cuda.max_memory_allocated()
            import jax

            return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
        return peak_memory()


def systematic_sample(count: int, wanted: int, seed: int) -> list[int]:
    """``wanted`` of ``count`` parts at equal steps from a random start, so that short and long ones are both there."""
    wanted = min(count, wanted)
    offset = np.random.default_rng(seed).uniform()
    return np.floor((np.arange(wanted) + offset) * count / wanted).astype(int).tolist()


def _read_tokens(path: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path) as file:
        return file["ids"], file["starts"]


def main() -> None:
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(*sys.argv[1:])
    for line in sys.stdin:
        command, arguments = json.loads(line)
        print(json.dumps(getattr(worker, command)(**arguments)), file=answers, flush=True)


if __name__ == "__main__":
    main()
