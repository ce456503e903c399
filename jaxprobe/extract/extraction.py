"""From a table and a model to hidden states: tokens, plan, and a store or memory to put them in."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxprobe.data.chat import put_prompt
from jaxprobe.data.prompt import Prompt
from jaxprobe.data.table import EntityTable
from jaxprobe.data.tokens import Tokens, tokenize
from jaxprobe.errors import InputError
from jaxprobe.extract.forward import (
    ShardStates,
    bins_per_step,
    compile_plan,
    devices_per_share,
    run_plan,
)
from jaxprobe.extract.shares import devices_by_share, find_shares
from jaxprobe.extract.store.reader import open_activations
from jaxprobe.extract.store.writer import ActivationStore, open_together
from jaxprobe.extract.sums import MomentStream
from jaxprobe.extract.trie import SLOTS, Plan, batch_shapes, plan_bins, with_one_width
from jaxprobe.host.progress import Progress, default_reporter
from jaxprobe.models.files.digest import weights_digest
from jaxprobe.models.load import DTYPES, LanguageModel, ModelFiles
from jaxprobe.settings import Position
from jaxprobe.sites import choose_sites


class Extraction(NamedTuple):
    """What will be run for one table and prompt; made before any weights are read."""

    texts: tuple[str, ...]
    prompt: Prompt
    tokens: Tokens
    plan: Plan
    states: tuple[str, ...]
    width: int  # D
    widths: dict[str, int]  # of the states that are not D wide

    @property
    def numbers_a_row(self) -> int:
        """Numbers that the states of one row are."""
        return sum(self.widths.get(state, self.width) for state in self.states)

    @property
    def entities(self) -> np.ndarray:
        """[R] of which text each row of the states is: one a text, but for position ``all`` one a token."""
        spans = self.tokens.spans if self.tokens.position == "all" else np.ones_like(self.tokens.spans)
        return np.repeat(np.arange(len(spans)), spans)


def plan_extraction(
    files: ModelFiles,
    texts: EntityTable | Sequence[str],
    prompt: Prompt | str = "empty",
    *,
    mesh: Mesh,
    layers: Sequence[int] | None = None,
    final_norm: bool = False,
    sites: Sequence[str] = (),
    seed: int = 0,
    position: Position = "last",
    chat: bool = False,
) -> Extraction:
    """Tokenises texts, or those of a table, and plans their bins.

    Args:
      files: the model, of which the tokenizer and the context are used.
      texts: N names; of a table its texts, and its own named prompts are known.
      prompt: a name that the data set has, or a template with ``{}``.
      layers: blocks to keep; default: every one that is loaded.
      final_norm: whether to keep the state after the final norm as well.
      sites: what to keep in the place of blocks: names of sites (jaxprobe/sites.py).
      seed: of the ``random`` prompt's tokens.
      position: which of each text's tokens are read.
      chat: whether the prompt goes into the tokenizer's chat template.

    Raises:
      InputError: an unusable prompt, a text that is empty or longer than the context, a token, a layer or a site that
        the model does not have.
    """
    dataset = texts.name if isinstance(texts, EntityTable) else ""
    texts = _texts(texts)
    prompt = put_prompt(files.tokenizer, dataset, prompt, texts, chat=chat)
    chosen = choose_sites(files.config.layers, files.complete, layers=layers, final_norm=final_norm, sites=sites)
    if files.config.parallel and (none := [str(site) for site in chosen if site.kind == "mid"]):
        raise InputError(
            f"Sites {', '.join(none)} don't exist: attention and MLP of this model read one stream, so that nothing "
            "stands between them. Leave them out."
        )
    sizes = files.config.sizes()
    widths = {str(site): sizes[site.letter] for site in chosen if site.letter != "D"}
    config = files.config
    tokens = tokenize(
        files.tokenizer,
        texts,
        prompt,
        max_length=config.longest_prompt,
        longest_because=config.longest_because,
        vocabulary=config.vocabulary,
        seed=seed,
        position=position,
    )
    plan = plan_tokens(tokens, bins=bins_per_step(mesh), multiple=devices_per_share(mesh), even=True)
    return Extraction(texts, prompt, tokens, plan, tuple(map(str, chosen)), files.config.width, widths)


def plan_tokens(tokens: Tokens, **options: Any) -> Plan:
    """`trie.plan_bins` of tokens, by their position."""
    return plan_bins(tokens.ids, tokens.starts, spans=tokens.spans, mean=tokens.position != "all", **options)


def _texts(texts: Sequence[str] | EntityTable) -> tuple[str, ...]:
    """The texts of a table, or those given. Raises InputError where they are none."""
    if isinstance(texts, EntityTable):
        return texts.texts
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts) or not len(texts):
        raise InputError('Texts are a list of one string or more, such as ["Paris", "Lima"], or a table.')
    return tuple(texts)


def split_extraction(extraction: Extraction, parts: Sequence[np.ndarray], mesh: Mesh) -> list[Extraction]:
    """The extraction cut into parts of the table's rows, each with its own plan; one compiled program runs them all.

    Args:
      parts: table rows of each part, one or more.
    """
    tokens, plans = extraction.tokens, []
    bins = extraction.plan.shards[0].batches[0].tokens.size // SLOTS  # a batch of longer bins has fewer
    for rows in parts:
        lengths = np.diff(tokens.starts)[rows]
        ids = np.concatenate([tokens.ids[tokens.starts[row] : tokens.starts[row + 1]] for row in rows])
        part = tokens._replace(ids=ids, starts=np.r_[0, np.cumsum(lengths)], spans=tokens.spans[rows])
        plan = plan_tokens(part, bins=bins, multiple=devices_per_share(mesh))
        plans.append(plan._replace(shards=tuple(shard._replace(rows=rows[shard.rows]) for shard in plan.shards)))
    return [extraction._replace(plan=plan) for plan in with_one_width(plans)]


def extraction_settings(files: ModelFiles, extraction: Extraction) -> dict[str, Any]:
    """All that the states' values depend on, and nothing of the hardware: the key of a store.

    Not the model's name or path either, which its weights and constants stand for: a folder may move.
    """
    tokens = extraction.tokens
    digest = hashlib.sha256(tokens.ids.tobytes() + tokens.starts.tobytes())
    # Said only where it is not the last token, so that stores from before there was a choice are what they were.
    position = {} if tokens.position == "last" else {"position": tokens.position}
    if position:
        digest.update(tokens.spans.astype("<i8").tobytes())
    return {
        "weights_sha256": weights_digest(files.checkpoint),
        "model": files.config.constants(),
        "prompt": extraction.prompt.template,
        "tokens_sha256": digest.hexdigest(),
        **position,
    }


def open_store(
    path: str | PathLike, files: ModelFiles, extraction: Extraction, dtype: str, *, repair: bool = False
) -> ActivationStore:
    """The store for this extraction: new, or going on where one ended. All processes of a job open it together.

    Raises InputError as `ActivationStore.open`, and where the processes don't see the same folder.
    """
    rows = [shard.rows for shard in extraction.plan.shards]
    settings = extraction_settings(files, extraction)
    source = {"model": files.source.name, "revision": files.source.revision}
    kept = extraction.states, extraction.width, dtype
    return open_together(path, settings, rows, *kept, widths=extraction.widths, source=source, repair=repair)


def fill_store(
    store: ActivationStore, model: LanguageModel, extraction: Extraction, progress: Progress | None = None
) -> None:
    """Computes the shards that the store lacks; each is written as it is complete, by the process that computed it.

    Returns when all of them are on disk, those of other processes too.
    """
    shares = find_shares(model.mesh)
    for shard in stream_states(model, extraction, "extract", progress, store.missing):
        if shard.index is not None and shares.writes(shard.index):
            store.write(shard.index, shard.states)
    store.wait_for_all()


def stream_states(
    model: LanguageModel,
    extraction: Extraction,
    task: str,
    progress: Progress | None = None,
    shards: Sequence[int] | None = None,
) -> Iterator[ShardStates]:
    """Computes shards (default: all) and hands out this process's; nothing is kept. ``task`` is for the progress."""
    plan, progress = extraction.plan, progress or default_reporter()
    shards = range(len(plan.shards)) if shards is None else shards
    count = len(batch_shapes(plan))
    with progress.task("compile", count, "program" if count == 1 else "programs") as advance:
        compile_plan(model, plan, extraction.states, advance)
    with progress.task(task, sum(len(plan.shards[index].rows) for index in shards), "entities") as advance:
        texts = [extraction.texts[entity] for entity in extraction.entities]
        yield from run_plan(model, plan, extraction.states, shards, advance, texts)


def stream_moments(
    model: LanguageModel,
    extraction: Extraction,
    segments: Mapping[str, np.ndarray],
    targets: np.ndarray,
    progress: Progress | None = None,
) -> MomentStream:
    """Moments of the extraction's rows, added up on the devices while the forward runs.

    Args:
      segments: name -> table rows that are summed together (a fold).
      targets: [N, C] of all table rows.
    """
    rows = [shard.rows for shard in extraction.plan.shards]
    devices = devices_by_share(model.mesh)
    stream = MomentStream(extraction.states, extraction.width, rows, segments, targets, devices)
    for shard in stream_states(model, extraction, "extract", progress):
        stream.add_wave(shard.wave, shard.values)
    return stream


def extract_states(
    model: LanguageModel,
    texts: EntityTable | Sequence[str],
    prompt: Prompt | str = "empty",
    *,
    layers: Sequence[int] | None = None,
    final_norm: bool = False,
    sites: Sequence[str] = (),
    seed: int = 0,
    store: str | PathLike | None = None,
    progress: Progress | None = None,
    position: Position = "last",
    chat: bool = False,
) -> Mapping[str, np.ndarray]:
    """The hidden state of every text's last token, or of others, at every layer.

    Args:
      model: from `load_model`.
      texts: plain texts, or a table from `load_table` for its texts.
      prompt: a name that the data set has, or a template such as ``"Where is {}"``.
      layers: blocks to keep; default: all.
      final_norm: whether to keep the state after the final norm as well.
      sites: what to keep in the place of blocks: ``embed``, ``12`` (the stream after block 12), ``12.mid`` (between its
        attention and its MLP), ``mlp.12`` (its neurons), ``final_norm``.
      seed: of the ``random`` prompt's tokens.
      store: a folder to keep the states in; a start with the same settings goes on where it stopped. Default: memory.
      chat: whether the prompt goes into the chat template of the model's tokenizer, as what a user says.
      position: which of a text's own tokens: ``last``, ``first``, ``mean`` over them (in float32), or ``all``, one
        after the other.

    Returns:
      state name -> [N, D] (of neurons [N, F]) in the order of the texts and in the model's dtype; by default the names
      are ``embed`` and ``0`` .. ``L-1``, the residual stream after each block. With ``all`` they are [R, D], a row a
      token, and the mapping is `TokenStates`, which has each row's text and token.

    Raises:
      InputError: input that can't be used (before anything is compiled), or a state that is not finite.
    """
    if store is None and jax.process_count() > 1:
        raise InputError("Each of several processes would have some rows only. Name a store, a folder that all share.")
    extraction = plan_extraction(
        model.files,
        texts,
        prompt,
        mesh=model.mesh,
        layers=layers,
        final_norm=final_norm,
        sites=sites,
        seed=seed,
        position=position,
        chat=chat,
    )
    if store is not None:
        with open_store(store, model.files, extraction, model.dtype) as opened:
            if not opened.complete:
                fill_store(opened, model, extraction, progress)
        return _by_token(model, extraction, open_activations(store))
    width_of = lambda state: extraction.widths.get(state, extraction.width)
    rows, dtype = len(extraction.entities), DTYPES[model.dtype]
    found = {state: np.empty((rows, width_of(state)), dtype) for state in extraction.states}
    for shard in stream_states(model, extraction, "extract", progress):
        for state, values in shard.states.items():
            found[state][shard.rows] = values
    return _by_token(model, extraction, found)


def _by_token(
    model: LanguageModel, extraction: Extraction, states: Mapping[str, np.ndarray]
) -> Mapping[str, np.ndarray]:
    """The states as they are, or of position ``all`` with what each row is of."""
    tokens = extraction.tokens
    if tokens.position != "all":
        return states
    ends = tokens.starts[1:]
    parts = [tokens.ids[end - span : end] for end, span in zip(ends, tokens.spans, strict=True)]
    spelled = model.files.tokenizer.convert_ids_to_tokens(np.concatenate(parts).tolist())
    return TokenStates(states, extraction.entities, tuple(spelled))


class TokenStates(Mapping):
    """State name -> [R, D], a row for each token of each text, one text after the other.

    Attributes:
      entities: [R] which text each row is of, so that ``states["3"][states.entities == 0]`` are the first text's.
      tokens: R tokens as the vocabulary spells them.
    """

    def __init__(self, states: Mapping[str, np.ndarray], entities: np.ndarray, tokens: tuple[str, ...]):
        self._states, self.entities, self.tokens = states, entities, tokens

    def __getitem__(self, state: str) -> np.ndarray:
        return self._states[state]

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)
