"""What a model says next of each entity, as it is and with its states edited.

A change at an entity's last token reaches only what comes after it. So the tokens up to there are one branch of the
prefix trie, and what follows (the rest of the prompt, and the continuations' tokens) grows from it once for every draw:
the unedited one, and each edited one. Two texts of which one begins with the other ("New York", "New York City") would
share the edited token: in the trie's keys, and only there, an entity's last token is another one for each draw.

Below the edited layer nothing changes. The unedited draw is run once, with the stream kept after every layer that will
be edited; an edited draw goes on from there, its row in the place of the entity's state. One program with a traced
first block serves all layers, and no keys or values are kept.

Letters as in mesh.py; M counts draws, P the points of one draw where the next token is looked at.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxprobe.data.prompt import Prompt, find_prompt
from jaxprobe.data.tokens import tokenize
from jaxprobe.errors import InputError
from jaxprobe.extract.forward import STEPS_IN_FLIGHT, bins_per_step, devices_per_share, in_flight, put_batch, run_root
from jaxprobe.extract.shares import put_bins
from jaxprobe.extract.trie import Batch, plan_bins
from jaxprobe.models.config import ModelConfig
from jaxprobe.models.load import LanguageModel
from jaxprobe.models.transformer import Bins, Edits, forward, logits, run_blocks
from jaxprobe.sites import Site

ROWS = 128  # rows of the output head at a time: over all of V they are the largest array there is
FEW_ROWS = 8  # at a time where there are no more
Path = tuple[int, ...]
Points = tuple[tuple[int, ...], ...]  # for each of E entities


class Choices(NamedTuple):
    """Continuations to choose between, as a tree of tokens.

    Attributes:
      names: C of them, as the model reads them after the prompt.
      tokens: their tokens.
      paths: P points where the next token is looked at: tokens after the prompt, () being its end.
      steps: for each name, its steps: (point, token).
    """

    names: tuple[str, ...]
    tokens: tuple[Path, ...]
    paths: tuple[Path, ...]
    steps: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def next_tokens(self) -> tuple[int, ...]:
        """U tokens, all that a step takes."""
        return tuple(sorted({token for steps in self.steps for _, token in steps}))


def choices(names: Sequence[str], tokens: Sequence[Sequence[int]], *, between: bool) -> Choices:
    """The tree of continuations.

    Args:
      names: C texts.
      tokens: of each.
      between: whether they are only compared with each other: a step that all who have come so far must take then
        tells nothing, and needs no point.

    Raises:
      InputError: no tokens, the same tokens twice or, ``between`` them, tokens that another one begins with.
    """
    tokens = [tuple(map(int, ids)) for ids in tokens]
    problems = [f"Continuation {name!r} has no tokens." for name, ids in zip(names, tokens, strict=True) if not ids]
    problems += [
        f"Continuations {a!r} and {b!r} have the same tokens. Take one of them."
        for (a, x), (b, y) in itertools.combinations(zip(names, tokens, strict=True), 2)
        if x == y
    ]
    if between:
        problems += [
            f"Continuation {b!r} begins with all tokens of {a!r}, so that they can't be told apart. Take one of them."
            for (a, x), (b, y) in itertools.permutations(zip(names, tokens, strict=True), 2)
            if len(x) < len(y) and y[: len(x)] == x
        ]
    if problems:
        raise InputError(*problems)
    after: dict[Path, set[int]] = {}
    for ids in tokens:
        for i, token in enumerate(ids):
            after.setdefault(ids[:i], set()).add(token)
    paths = tuple(sorted((path for path in after if not between or len(after[path]) > 1 or not path), key=len))
    index = {path: i for i, path in enumerate(paths)}
    steps = tuple(tuple((index[ids[:i]], token) for i, token in enumerate(ids) if ids[:i] in index) for ids in tokens)
    return Choices(tuple(names), tuple(tokens), paths, steps)


class Said(NamedTuple):
    """What the model says after E entities in M draws.

    Attributes:
      logits: [E, M, P, U] of the choices' next tokens at each point; NaN at a point that was not looked at.
      log_normaliser: [E, M, P] log of the sum over all of V of exp(logit); None where it was not asked for.
      kl: [E, M, P] divergence of all of V from the unedited model's, in nats; None where it was not asked for.
    """

    logits: Float[np.ndarray, "E M P U"]
    log_normaliser: Float[np.ndarray, "E M P"] | None
    kl: Float[np.ndarray, "E M P"] | None

    def log_probabilities(self, choices: Choices) -> Float[np.ndarray, "E M C"]:
        """Log-probability of each continuation, all of its tokens together, among all that could be said."""
        return self._sum(choices, self.logits.astype(np.float64) - self.log_normaliser[..., None])

    def log_odds(self, choices: Choices) -> Float[np.ndarray, "E M C"]:
        """Log-probability of each continuation where nothing else can be said.

        At each step it is that of one token among those that go on to a continuation. NaN where a step's point was not
        looked at.
        """
        steps = np.full((len(choices.paths), len(choices.next_tokens)), -np.inf)
        column = {token: i for i, token in enumerate(choices.next_tokens)}
        for point, token in itertools.chain(*choices.steps):
            steps[point, column[token]] = 0
        allowed = self.logits[..., : len(steps), :].astype(np.float64) + steps
        highest = allowed.max(-1, keepdims=True)
        return self._sum(choices, allowed - highest - np.log(np.exp(allowed - highest).sum(-1, keepdims=True)))

    def _sum(self, choices: Choices, values: np.ndarray) -> np.ndarray:
        column = {token: i for i, token in enumerate(choices.next_tokens)}
        each = [sum(values[..., point, column[token]] for point, token in steps) for steps in choices.steps]
        return np.stack(each, axis=-1)


class _Tree(NamedTuple):
    """M draws of every entity in bins, and where their slots are in the unedited tree."""

    root: Int[np.ndarray, " R"]
    batches: tuple[Batch, ...]  # with the model's own tokens
    node: tuple[Int[np.ndarray, "B T"], ...]  # of the unedited tree, one for each batch
    # For each batch bin, slot, entity and draw of the entities' last tokens. Where a bin is full, the next repeats one.
    own: tuple[Int[np.ndarray, "n 4"], ...]
    # For each batch the sequences that end there: which draw of which entity, which of its points (-1: its own slot).
    ended: tuple[Int[np.ndarray, "n 3"], ...]
    slots: int
    floor: int  # slots that depend on an edit: the entities' own and what follows them


class Work(NamedTuple):
    """Slots times blocks that were run, and the least that could have been: edited slots and what follows them."""

    run: int
    floor: int


class Continuations:
    """E entities in one prompt, and the points of their continuations.

    Made by `read_continuations`, or from tokens. What it keeps is on the host: the unedited stream of every slot after
    each of ``layers``.

    Attributes:
      work: of the edited draws so far.
    """

    def __init__(
        self,
        model: LanguageModel,
        prefixes: Sequence[Sequence[int]],
        after: Sequence[Sequence[int]],
        choices: Choices,
        layers: Sequence[int],
        neutral: Sequence[int] = (),
    ):
        """Runs the unedited model once.

        Args:
          model: loaded with its output head.
          prefixes: tokens of each entity up to its last, BOS included.
          after: tokens of each entity's prompt after it.
          choices: what may come then.
          layers: blocks after which edits will be made; -1 for the embedding.
          neutral: tokens after the entity in the place of the prompt's; their end is one more point, the last, with no
            continuation of its own.

        Raises:
          InputError: the model is spread over several processes.
        """
        if any(device.process_index != jax.process_index() for device in model.mesh.devices.flat):
            raise InputError("Edits run on the devices of one process. Give the model a mesh of these.")
        self.model, self.choices, self.layers = model, choices, tuple(sorted(set(layers)))
        self.prefixes = [tuple(map(int, ids)) for ids in prefixes]
        last = self.model.config.layers - 1
        self.paths = [
            [tuple(suffix) + path for path in choices.paths] + ([tuple(neutral)] if len(neutral) else [])
            for suffix in after
        ]
        self.points = len(choices.paths) + bool(len(neutral))
        self._nodes: dict[tuple[int, int], int] = {}  # (node before it, token) -> node
        self._trees: dict[tuple[int, Points], _Tree] = {}
        self._all_points: Points = (tuple(range(self.points)),) * len(self.prefixes)
        tree = self._plan(1, self._all_points)
        self._root = run_root(model, tree.root)
        self._streams = {layer: np.zeros((len(self._nodes), model.config.width), np.float32) for layer in self.layers}
        self._last = np.zeros((len(self._nodes), model.config.width), np.float32)
        self._own = np.zeros(len(self.prefixes), np.int64)  # each entity's node
        self._point = np.zeros((len(self.prefixes), self.points), np.int64)
        names = tuple(str(Site("embed") if layer == -1 else Site("block", layer)) for layer in self.layers)
        sites = tuple(dict.fromkeys((*names, str(last))))
        step = _compiled_clean(model.config, model.mesh, sites)
        for batch, node, ended in zip(tree.batches, tree.node, tree.ended, strict=True):
            slots = np.broadcast_to(np.arange(batch.tokens.shape[1], dtype=np.int32), batch.tokens.shape)
            states = step(model.weights, put_batch(batch._replace(wanted=slots), model.mesh), self._root)
            used = node >= 0
            for layer, name in zip(self.layers, names, strict=True):
                self._streams[layer][node[used]] = np.asarray(states[name])[:, : node.shape[1]][used]
            self._last[node[used]] = np.asarray(states[str(last)])[:, : node.shape[1]][used]
            at = node[batch.bins, batch.wanted[batch.bins, batch.columns]]
            own = ended[:, 2] < 0
            self._own[ended[own, 0]] = at[own]
            self._point[ended[~own, 0], ended[~own, 2]] = at[~own]
        self.work = Work(0, 0)

    def states(self, layer: int) -> Float[np.ndarray, "E D"]:
        """The unedited state of every entity's last token after a layer."""
        return self._streams[layer][self._own]

    def states_after(self, layer: int, rows: Float[np.ndarray, "E M D"], later: int) -> Float[np.ndarray, "E M D"]:
        """The states of the entities' last tokens after a ``later`` layer, with other states there after ``layer``."""
        tree, mesh = self._plan(rows.shape[1], ((),) * len(self.prefixes)), self.model.mesh
        found, step = np.zeros(rows.shape, np.float32), _compiled_edited(self.model.config, mesh)
        for i, states in in_flight(self._step_from(tree, layer, rows, step, later), STEPS_IN_FLIGHT):
            batch, ended = tree.batches[i], tree.ended[i]
            found[ended[:, 0], ended[:, 1]] = np.asarray(states)[batch.bins, batch.columns]
        return found

    def _step_from(
        self, tree: _Tree, layer: int, rows: np.ndarray, step: Callable[..., jax.Array], last: int
    ) -> Iterator[tuple[int, jax.Array]]:
        """Each batch's wanted states after block ``last``, with rows in the place of the entities' after ``layer``."""
        stream = self._streams[layer]
        for i, (batch, node, own) in enumerate(zip(tree.batches, tree.node, tree.own, strict=True)):
            x = stream[np.maximum(node, 0)]
            x[own[:, 0], own[:, 1]] = rows[own[:, 2], own[:, 3]]
            bins, between = put_batch(batch, self.model.mesh), (jnp.int32(layer + 1), jnp.int32(last))
            yield i, step(self.model.weights, put_bins(x, self.model.mesh), bins, self._root, *between)

    def clean(self, *, everything: bool = True) -> Said:
        """What the unedited model says, as one draw; ``everything`` as in `edited`."""
        return self._look(self._last[self._point][:, None], self._all_points, everything)

    def points_of(self, chosen: Sequence[int]) -> Points:
        """For each entity the points that the log-odds of one continuation need, the right answer say.

        A draw that looks at no other costs the entity's slot, the prompt's rest, and seldom more.
        """
        return tuple(tuple(sorted({point for point, _ in self.choices.steps[i]})) for i in chosen)

    def edited(
        self,
        layer: int,
        rows: Float[np.ndarray, "E M D"],
        *,
        everything: bool | tuple[int, ...] = True,
        points: Points | None = None,
    ) -> Said:
        """What the model says with other states at the entities' last tokens.

        Args:
          layer: one of ``layers``.
          rows: what these states are after it, in M draws.
          everything: normalisers and divergences over all of V as well, at all points or at some (NaN at others);
            without, the head has the choices' rows only.
          points: of each entity, which to look at (`points_of`), without ``everything``; default: all.
        """
        if layer not in self._streams or rows.shape[::2] != (len(self.prefixes), self.model.config.width):
            raise ValueError(f"rows {rows.shape} at layer {layer}; wanted [E, M, D] at one of {self.layers}")
        points = self._all_points if points is None else points
        tree, last = self._plan(rows.shape[1], points), self.model.config.layers - 1
        found = np.zeros((*rows.shape[:2], max(map(len, points)), rows.shape[2]), np.float32)
        step, blocks = _compiled_edited(self.model.config, self.model.mesh), last - layer
        for i, states in in_flight(self._step_from(tree, layer, rows, step, last), STEPS_IN_FLIGHT):
            batch, ended = tree.batches[i], tree.ended[i]
            values = np.asarray(states)[batch.bins, batch.columns]
            own = ended[:, 2] < 0
            found[ended[~own, 0], ended[~own, 1], ended[~own, 2]] = values[~own]
        self.work = Work(self.work.run + tree.slots * blocks, self.work.floor + tree.floor * blocks)
        return self._look(found, points, everything)

    def edited_on_the_way(
        self,
        edits: Mapping[int, tuple[np.ndarray, ...]],
        *,
        where: str = "entity",
        everything: bool | tuple[int, ...] = True,
        points: Points | None = None,
    ) -> Said:
        """What the model says with an operator after several blocks, each reading what the ones before it left.

        Args:
          edits: block -> (read [D, K], write [D, K], mean [D], target [K]), as in `probes.erase.Edit`.
          where: "entity", its last token only; "after", that token and all later ones; "all", every token, BOS too.
          everything, points: as in `edited`.
        """
        points = self._all_points if points is None else points
        config, tree = self.model.config, self._plan(1, points)
        rank = max(read.shape[1] for read, *_ in edits.values())
        shape = (config.layers, config.width, rank)
        read, write = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        target = np.zeros((config.layers, rank), np.float32)
        for layer, (r, w, mean, goal) in edits.items():
            read[layer, :, : r.shape[1]], write[layer, :, : r.shape[1]] = r, w
            target[layer, : r.shape[1]] = goal + np.asarray(mean, np.float64) @ r
        everywhere = Edits(*map(jnp.asarray, (read, write, target)))
        root = run_root(self.model, tree.root, everywhere) if where == "all" else self._root
        found = np.zeros((len(self.prefixes), 1, max(map(len, points)), config.width), np.float32)
        step = _compiled_on_the_way(config, self.model.mesh)
        for batch, own, ended in zip(tree.batches, tree.own, tree.ended, strict=True):
            slots = np.zeros(batch.tokens.shape, bool)
            for bin_, slot in own[:, :2]:
                stop = {"entity": slot + 1, "after": batch.ends[bin_, slot], "all": slot + 1}[where]
                slots[bin_, slot:stop] = True
            slots |= where == "all"
            edits_here = everywhere._replace(slots=put_bins(slots, self.model.mesh))
            values = np.asarray(step(self.model.weights, put_batch(batch, self.model.mesh), root, edits_here))
            at = ended[:, 2] >= 0
            found[ended[at, 0], 0, ended[at, 2]] = values[batch.bins, batch.columns][at]
        return self._look(found, points, everything)

    def slots_of(self, draws: int, points: Points | None = None) -> tuple[int, int]:
        """Slots of so many draws of every entity, and those that depend on an edit; ``points`` as in `edited`."""
        tree = self._plan(draws, self._all_points if points is None else points)
        return tree.slots, tree.floor

    def _look(self, rows: Float[np.ndarray, "E M Q D"], looked: Points, everything: bool | tuple[int, ...]) -> Said:
        """The head, in pieces of ROWS rows, of up to Q points of each entity."""
        if everything is True and looked == self._all_points:
            return Said(*self._head(rows, np.broadcast_to(self._last[self._point][:, None], rows.shape)))
        chosen = self._head(rows, None)[0]
        if looked != self._all_points:
            if everything is not False:
                raise ValueError("all of V is only looked at where all points are")
            logits = np.full((*rows.shape[:2], self.points, chosen.shape[-1]), np.nan, np.float32)
            for entity, points in enumerate(looked):
                logits[entity][:, list(points)] = chosen[entity][:, : len(points)]
            return Said(logits, None, None)
        if everything is False:
            return Said(chosen, None, None)
        points = list(everything)
        unedited = np.broadcast_to(self._last[self._point][:, None], rows.shape)
        normaliser, kl = np.full((2, *rows.shape[:3]), np.nan)
        found = self._head(rows[:, :, points], unedited[:, :, points])
        normaliser[:, :, points], kl[:, :, points] = found[1], found[2]
        chosen[:, :, points] = found[0]  # of one program with the normaliser
        return Said(chosen, normaliser, kl)

    def _head(
        self, rows: Float[np.ndarray, "E M P D"], unedited: Float[np.ndarray, "E M P D"] | None
    ) -> list[np.ndarray]:
        """[E, M, P, ...] what `_compiled_head` gives for rows, and for those of the unedited model."""
        tokens = jnp.asarray(self.choices.next_tokens, jnp.int32)
        step = _compiled_head(self.model.config, self.model.mesh)
        flat = [None if values is None else values.reshape(-1, values.shape[-1]) for values in (rows, unedited)]
        parts = []
        rows_at_once = FEW_ROWS if len(flat[0]) <= FEW_ROWS else ROWS
        for first in range(0, len(flat[0]), rows_at_once):
            count = min(rows_at_once, len(flat[0]) - first)
            padded = [
                None if values is None else np.pad(values[first : first + count], ((0, rows_at_once - count), (0, 0)))
                for values in flat
            ]
            parts.append([np.asarray(each)[:count] for each in step(self.model.weights, *padded, tokens)])
        joined = [np.concatenate(each) for each in zip(*parts, strict=True)]
        return [each.reshape(*rows.shape[:3], *each.shape[1:]) for each in joined]

    def _plan(self, draws: int, points: Points) -> _Tree:
        """Lays out ``draws`` draws of every entity, up to these points of each."""
        if (draws, points) in self._trees:
            return self._trees[draws, points]
        first_key = max(itertools.chain(*self.prefixes, *itertools.chain(*self.paths))) + 1
        sequences, meaning = [], []
        for (entity, prefix), draw in itertools.product(enumerate(self.prefixes), range(draws)):
            own = (*prefix[:-1], first_key + entity * draws + draw)
            sequences += [own, *((*own, *self.paths[entity][point]) for point in points[entity])]
            meaning += [(entity, draw, column) for column in range(-1, len(points[entity]))]
        starts, mesh = np.r_[0, np.cumsum(list(map(len, sequences)))], self.model.mesh
        plan = plan_bins(
            np.fromiter(itertools.chain(*sequences), np.int64, starts[-1]),
            starts,
            bins=bins_per_step(mesh),
            multiple=devices_per_share(mesh),
            even=True,
            shard_entities=len(sequences),
        )
        [shard] = plan.shards
        last = np.array([prefix[-1] for prefix in self.prefixes], np.int32)
        batches, nodes, owns, ended = [], [], [], []
        for batch in shard.batches:
            key = batch.tokens >= first_key
            entity, draw = np.divmod(batch.tokens[key] - first_key, draws)
            tokens, unedited = batch.tokens.copy(), batch.tokens.copy()
            tokens[key], unedited[key] = last[entity], first_key + entity
            batches.append(batch._replace(tokens=tokens))
            nodes.append(self._find_nodes(batch, unedited))
            owns.append(np.stack([*np.nonzero(key), entity, draw], axis=1))
            ended.append(np.array([meaning[i] for i in shard.rows[batch.entities]]))
        # An edited slot, and every slot that any of the points is at or after.
        beginnings = lambda paths: {path[:end] for path in paths for end in range(len(path) + 1)}
        wanted = ([paths[point] for point in mine] for paths, mine in zip(self.paths, points, strict=True))
        floor = draws * sum(len(beginnings(paths) | {()}) for paths in wanted)
        slots = sum(batch.tokens.size for batch in batches)
        tree = _Tree(plan.root, tuple(batches), tuple(nodes), tuple(owns), tuple(ended), slots, floor)
        self._trees[draws, points] = tree
        return tree

    def _find_nodes(self, batch: Batch, keys: Int[np.ndarray, "B T"]) -> Int[np.ndarray, "B T"]:
        """The unedited tree's node of every slot, of which it makes those that are new; -1 for slots not in use."""
        nodes, used = np.full(keys.shape, -1), np.full(len(keys), -1)
        np.maximum.at(used, batch.bins, batch.wanted[batch.bins, batch.columns])  # a bin's last slot ends a sequence
        for bin_, last in enumerate(used):
            above: list[tuple[int, int]] = []  # (end, node) of the slots that the next one may be below
            for slot in range(last + 1):
                while above and above[-1][0] <= slot:
                    above.pop()
                place = above[-1][1] if above else -1, int(keys[bin_, slot])
                nodes[bin_, slot] = self._nodes.setdefault(place, len(self._nodes))
                above.append((int(batch.ends[bin_, slot]), nodes[bin_, slot]))
        return nodes


@functools.lru_cache(maxsize=4)
def _compiled_clean(config: ModelConfig, mesh: Mesh, sites: tuple[str, ...]) -> Callable[..., dict[str, jax.Array]]:
    return jax.jit(
        lambda weights, bins, root: forward(weights, config, bins, root, mesh=mesh, sites=sites).states(sites)
    )


@functools.lru_cache(maxsize=4)
def _compiled_edited(config: ModelConfig, mesh: Mesh) -> Callable[..., jax.Array]:
    def step(weights, x, bins, root, first, last):
        return _wanted(run_blocks(weights, config, x, bins, root, mesh=mesh, first=first, last=last).stream, bins)

    return jax.jit(step)


@functools.lru_cache(maxsize=4)
def _compiled_on_the_way(config: ModelConfig, mesh: Mesh) -> Callable[..., jax.Array]:
    def step(weights, bins, root, edits):
        return _wanted(forward(weights, config, bins, root, mesh=mesh, edits=edits).stream, bins)

    return jax.jit(step)


def _wanted(x: Float[Array, "B T D"], bins: Bins) -> Float[Array, "B W D"]:
    return jnp.take_along_axis(x, bins.wanted[:, :, None], axis=1)


@functools.lru_cache(maxsize=4)
def _compiled_head(config: ModelConfig, mesh: Mesh) -> Callable[..., tuple[jax.Array, ...]]:
    def step(weights, rows, unedited, tokens):
        if unedited is None:
            return (logits(weights, config, rows, mesh=mesh, tokens=tokens),)
        edited, clean = (logits(weights, config, x, mesh=mesh) for x in (rows, unedited))
        normaliser = jax.nn.logsumexp(edited, axis=-1)
        q, p = edited - normaliser[:, None], jax.nn.log_softmax(clean, axis=-1)
        return edited[:, tokens], normaliser, jnp.sum(jnp.exp(p) * (p - q), axis=-1)

    return jax.jit(step)


def read_continuations(
    model: LanguageModel,
    texts: Sequence[str],
    prompt: Prompt | str,
    continuations: Sequence[str],
    layers: Sequence[int],
    *,
    neutral: str | None = None,
    between: bool = False,
) -> Continuations:
    """Runs the unedited model on every text in a prompt, up to the continuations.

    Args:
      model: loaded with its output head: ``load_model(..., head=True)``.
      texts: E entities.
      prompt: the name of one, or a template: "{} is a city in the country of".
      continuations: C texts as they follow the prompt, their leading space included: " France".
      layers: blocks after which edits will be made; -1 for the embedding.
      neutral: text after the entity in the place of the prompt's rest, to see what an edit does to what was not asked.
      between: whether continuations are only compared with each other (`Said.log_odds`).

    Raises:
      InputError: an unusable prompt, text or continuation, or a model that is spread over several processes.
    """
    prompt = find_prompt("", prompt) if isinstance(prompt, str) else prompt
    config, tokenizer = model.config, model.files.tokenizer
    tokens = tokenize(
        tokenizer,
        texts,
        prompt,
        max_length=config.longest_prompt,
        longest_because=config.longest_because,
        vocabulary=config.vocabulary,
    )
    prefixes = [tokens.ids[a:b].tolist() for a, b in itertools.pairwise(tokens.starts)]
    before, after = prompt.template.split("{}")
    # What follows is tokenised behind the first text, whose tokens are then taken off: a leading space, or the lack of
    # one, makes other tokens of a word alone.
    encode = lambda text: tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    spelled = prompt.spell(texts)

    def following(text: str, tail: str) -> list[int]:
        base, whole = encode(text), encode(text + tail)
        return whole[len(base) :] if whole[: len(base)] == base else encode(tail)

    def rest(text: str, prefix: list[int]) -> list[int]:
        """What the prompt's tokens are after the entity's last one."""
        whole = encode(before + text + after)
        return whole[max(stop for stop in range(len(whole) + 1) if prefix[len(prefix) - stop :] == whole[:stop]) :]

    behind = [following(before + spelled[0] + after, text) for text in continuations]
    tree = choices(continuations, behind, between=between)
    suffixes = list(map(rest, spelled, prefixes))
    other = following(before + spelled[0], neutral) if neutral else []
    longest = max(map(len, prefixes)) + max(max(map(len, suffixes)) + max(map(len, tree.paths)), len(other))
    if longest > config.longest_prompt:
        raise InputError(
            f"A text and its continuation are {longest:,} tokens, of {config.longest_prompt:,} at most. Shorten it."
        )
    return Continuations(model, prefixes, suffixes, tree, layers, other)
