"""Moves what a run's probe reads at a name to another place, and lets the model go on from there."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import NamedTuple

import numpy as np
import pandas as pd
from safetensors.numpy import save

from jaxprobe.data.sphere import unit_vectors
from jaxprobe.errors import InputError
from jaxprobe.extract.continuations import Choices, Continuations, read_continuations
from jaxprobe.host.paths import AnyPath, as_path, replacing
from jaxprobe.host.progress import Reporter
from jaxprobe.models.load import LanguageModel, fit_mesh, read_weights
from jaxprobe.models.placement import place
from jaxprobe.probes.erase import Edit, apply_edit, covariance, steer
from jaxprobe.results.results import Run
from jaxprobe.sites import Site

TOKENS = 8  # greedy tokens of a continuation
FIRST = 5  # most likely next tokens that are listed


class Steering(NamedTuple):
    """A shift of one layer's stream.

    Attributes:
      layer: block after which it is made; -1 for the embedding.
      edit: the operator.
    """

    layer: int
    edit: Edit


def plan_shift(run: Run, to: Sequence[float], state: str | None = None) -> Steering:
    """The shift along the states' own covariance that makes the run's probe read ``to``.

    Args:
      to: the targets' values: latitude and longitude, or a year.
      state: ``embed`` or a block's number; default: the headline layer.

    Raises:
      InputError: other numbers of targets, a state that no edit can be made at, or a run without stored states.
    """
    run.check_last_token()
    state = state or run.headline_layer
    site = Site.parse(state)
    if site.kind not in ("embed", "block"):
        raise InputError(f"State {state} can't be moved: shifts are in the stream. Name embed or a layer's number.")
    if len(to) != len(run.targets):
        raise InputError(f"--to has {len(to)} values; the run's probe reads {', '.join(run.targets)}.")
    arrays, metadata = run.probes
    names = list(metadata["states"])
    if state not in names:
        raise InputError(f"{run.path} has no probe of {state}; it has {', '.join(names)}.")
    at, table = names.index(state), run.table
    goal, targets = np.asarray(to, np.float64), table.targets[~table.is_test]
    if table.unit_vectors:
        goal, targets = unit_vectors(*goal), unit_vectors(*targets.T)
    x = np.asarray(run.activations[state][~table.is_test], np.float64)
    probe = (arrays[name][at].astype(np.float64) for name in ("weights", "intercept"))
    return Steering(-1 if site.layer is None else site.layer, steer(*probe, x.mean(0), goal, covariance(x, targets)))


def steer_texts(
    run: Run, steering: Steering, texts: Sequence[str], prompt: str, reporter: Reporter, tokens: int = TOKENS
) -> pd.DataFrame:
    """What the model says after each text, as it is and with its last token's state moved.

    Returns:
      One row a text: text, says and says_moved (``tokens`` greedy tokens), likely and likely_moved (the most likely
      next tokens with their probabilities), and kl, the divergence of all next tokens in nats.

    Raises:
      InputError: as `Run.open_model` and `read_continuations`.
    """
    model = load_with_head(run, reporter)
    shown: dict[str, list] = {name: [] for name in ("text", "says", "says_moved", "likely", "likely_moved", "kl")}
    with reporter.task("steer", len(texts), "texts") as advance:
        for text in texts:
            found = _go_on(model, steering, text, prompt, tokens)
            for name, value in ({"text": text} | found).items():
                shown[name].append(value)
            advance(1)
    return pd.DataFrame(shown)


def load_with_head(run: Run, reporter: Reporter) -> LanguageModel:
    """The run's model with its output head, on this machine's devices."""
    files, settings = run.open_model(head=True), run.settings
    mesh, _ = place(files.config, None, settings.dtype)
    return read_weights(fit_mesh(files, mesh, settings.replicate_kv), mesh, settings.dtype, reporter)


def _go_on(model: LanguageModel, steering: Steering, text: str, prompt: str, tokens: int) -> dict[str, object]:
    """Greedy continuations, one token at a time: every step asks for all of V at the end of what was said."""
    tokenizer = model.files.tokenizer
    # Every token may come next.
    every = Choices((), (), ((),), tuple(((0, token),) for token in range(model.config.vocabulary)))
    asked = read_continuations(model, [text], prompt, [" "], [])
    layer, names = steering.layer, ("", "_moved")
    spoken: dict[str, list[int]] = {name: [] for name in names}
    said: dict[str, object] = {}
    for step in range(tokens):
        answers = {}  # by what was said so far: mostly both have said the same, and one forward serves both
        for ids in {tuple(ids) for ids in spoken.values()}:
            engine = Continuations(model, asked.prefixes, [(*asked.paths[0][0], *ids)], every, [layer])
            own = engine.states(layer)
            answers[ids] = engine.edited(
                layer, np.stack([own, apply_edit(steering.edit, own)], 1), everything=step == 0
            )
        for draw, name in enumerate(names):
            answer = answers[tuple(spoken[name])]
            logits = answer.logits[0, draw, 0].astype(np.float64)
            if step == 0:
                shares = np.exp(logits - answer.log_normaliser[0, draw, 0])
                best = np.argsort(-shares)[:FIRST]
                said[f"likely{name}"] = ", ".join(f"{tokenizer.decode([int(i)])!r} {shares[i]:.2f}" for i in best)
                said["kl"] = float(answer.kl[0, draw, 0])
            spoken[name].append(int(logits.argmax()))
    return said | {f"says{name}": tokenizer.decode(ids) for name, ids in spoken.items()}


def export_vector(run: Run, out: str | PathLike, states: Sequence[str] = ()) -> AnyPath:
    """Writes the direction of each target at each layer for other tools.

    Args:
      out: .safetensors: for each state and target ``STATE.TARGET`` [D], the change of the stream that moves the reading
        by one unit along the states' covariance. .gguf: a control vector as llama.cpp has it, ``direction.N`` [D] for
        block N, of the run's first target, per deviation of that target.
      states: which; default: all blocks' that the run has.

    Raises:
      InputError: another ending, or a run without stored states.
    """
    out = as_path(out)
    if out.suffix not in (".safetensors", ".gguf"):
        raise InputError(f"{out} ends in {out.suffix or 'nothing'}; name a .safetensors or a .gguf file.")
    names = list(states) or [name for name in run.activations if Site.parse(name).kind == "block"]
    spread = run.table.targets[~run.table.is_test].std(0)
    writes = {state: plan_shift(run, [0.0] * len(run.targets), state).edit.write for state in names}
    with replacing(out) as temporary:
        if out.suffix == ".safetensors":
            vectors = {
                f"{state}.{target}": np.ascontiguousarray(write[:, i], np.float32)
                for state, write in writes.items()
                for i, target in enumerate(run.targets)
            }
            temporary.write_bytes(save(vectors, metadata={"model": run.model, "unit": "change of the stream per unit"}))
        else:
            _write_control_vector(temporary, writes, spread[0], run)
    return out


def _write_control_vector(path: AnyPath, writes: Mapping[str, np.ndarray], spread: float, run: Run) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), "controlvector")
    writer.add_string("controlvector.model_hint", run.model)
    # llama.cpp adds direction.N to what block N leaves, and has none of block 0.
    written = {state: write for state, write in writes.items() if Site.parse(state).layer}
    writer.add_uint32("controlvector.layer_count", len(written))
    for state, write in written.items():
        writer.add_tensor(f"direction.{state}", np.ascontiguousarray(write[:, 0] * spread, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
