"""The rules of the contract, each a check of its own: ``CHECKS[name](case)`` raises one line that names the rule."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from recplug.plugins.contract import Modality, Plugin, Side
from recplug.plugins.factors import FactorProfiles
from recplug.plugins.step import Batch
from recplug.plugins.testing.case import (
    N_ITEMS,
    N_USERS,
    Case,
    cases,
    finite,
    same_future,
    snapshot,
    step_loss,
    trained,
)
from recplug.plugins.testing.graphs import check_no_interactions as check_no_interactions
from recplug.plugins.testing.graphs import check_padding_alone as check_padding_alone
from recplug.plugins.testing.graphs import check_without_interactions as check_without_interactions
from recplug.plugins.testing.leaks import check_no_future as check_no_future
from recplug.plugins.testing.leaks import check_no_target as check_no_target
from recplug.plugins.testing.losses import check_no_losses as check_no_losses
from recplug.plugins.testing.mechanisms import check_mechanisms
from recplug.plugins.testing.rules import CHECKS, BrokenContract, require, rule
from recplug.plugins.testing.scores import check_pairs as check_pairs
from recplug.plugins.testing.scores import check_shown as check_shown
from recplug.plugins.testing.scores import check_training_pairs as check_training_pairs
from recplug.plugins.testing.shapes import check_seams as check_seams
from recplug.plugins.testing.shapes import check_shapes as check_shapes
from recplug.plugins.testing.toys import HOSTS


def check_plugin(
    plugin: Plugin, settings: Mapping[str, Any] | None = None, hosts: Iterable[str] = tuple(HOSTS)
) -> None:
    """Run every check on every toy backbone that the plugin fits; at the defaults, its mechanisms' too.

    Args:
        plugin: the plugin.
        settings: given settings; others take their defaults.
        hosts: names in :data:`HOSTS`.

    Raises:
        BrokenContract: with one line for each broken rule.
        RecplugError: if a setting is wrong, or the toys cannot offer what the plugin requires.
    """
    broken = []
    for case in cases(plugin, settings, hosts):
        for check in CHECKS.values():
            try:
                check(case)
            except BrokenContract as error:
                broken.append(str(error))
    if not settings:
        try:
            check_mechanisms(plugin, hosts)
        except BrokenContract as error:
            broken.append(str(error))
    if broken:
        raise BrokenContract("\n".join(broken))


@rule("in the roles of by_item an item's row does not depend on the history it stands in")
def check_by_item(case: Case) -> None:
    """The chain fuses such an item once a step, without a history."""
    host, batch = case.build().eval(), case.batch()
    (augmentation,) = host.chain.augmentations().values()
    ids = batch.sequence
    assert ids is not None
    rows = host.chain.table("items").raw[ids]
    with torch.no_grad(), host.chain.serving():
        for role in sorted(augmentation.by_item):
            among = augmentation.items(rows, ids, role=role, sequence=ids)[ids > 0]
            alone = augmentation.items(rows[ids > 0], ids[ids > 0], role=role, sequence=None)
            require(torch.allclose(among, alone, atol=1e-5), f"in the role '{role}' it does")


@rule("padding and mask rows keep the host's own row, bit for bit")
def check_padding(case: Case) -> None:
    """Through the grafted tables: what an augmentation returns there is ignored, unless it writes in place."""
    host, batch = case.build(), case.batch()
    special: dict[Side, list[int]] = {"users": [0], "items": [0]}
    if host.backbone.mask_id is not None:
        special["items"].append(host.backbone.mask_id)
    before = {side: table.raw.detach().clone() for side, table in host.chain.tables().items()}
    for side, table in host.chain.tables().items():
        ids, kept = torch.tensor([[2, *special[side], 4]], device="cpu"), before[side][special[side]]
        ids = ids if host.backbone.family == "sequential" else ids.squeeze(0)
        for training in (True, False):
            host.train(training)
            step = host.chain.step(replace(batch, sequence=ids)) if training else nullcontext()
            with torch.no_grad(), step:
                rows, weight = table(ids).reshape(-1, table.embedding_dim)[1:-1], table.weight[special[side]]
            require(torch.equal(rows, kept), f"the encoder reads another row of {side}")
            require(torch.equal(weight, kept), f"the whole table of {side} holds another row")
    for side, table in host.chain.tables().items():
        require(torch.equal(table.raw, before[side]), f"the host's own table of {side} was written to")


@rule("items and users that are numbered otherwise, with their content, factors and interactions, get the same scores")
def check_permutation(case: Case) -> None:
    """Ids carry no information."""
    host, batch = trained(case.build(), case.batch()), case.batch()
    items, users = (
        torch.cat([torch.zeros(1, dtype=torch.long, device="cpu"), 1 + torch.randperm(n - 1, device="cpu")])
        for n in (N_ITEMS, N_USERS)
    )
    # A tensor that has a row an item, a user or a node is renumbered; rare lengths keep others from looking like one.
    rows = torch.cat([items, torch.arange(N_ITEMS, len(host.chain.table("items").raw), device="cpu")])  # [n_rows]
    orders = {len(order): order for order in (users, items, rows, torch.cat([users, N_USERS + items]))}

    def renumber(values: Tensor) -> Tensor:
        order = orders.get(len(values)) if values.dim() else None
        return values if order is None else torch.empty_like(values).index_copy_(0, order, values)

    modalities = {
        name: Modality(name, renumber(m.values), renumber(m.present)) for name, m in case.modalities().items()
    }
    edges, factors = case.edges(), case.factors()
    other = case.build(
        modalities=modalities,
        edges=torch.stack([users[edges[0]], items[edges[1]]]),
        factors=renumbered_profiles(factors, items),
    )
    state = {key: renumber(v) if isinstance(v, Tensor) else v for key, v in host.state_dict().items()}
    other.load_state_dict(state)
    assert batch.sequence is not None
    assert batch.users is not None
    moved = replace(batch, sequence=items[batch.sequence], users=users[batch.users])
    scores, renumbered = host.scores(batch), other.scores(moved)
    difference = (renumbered[:, items] - scores).abs().max()
    require(difference < 1e-4 * scores.abs().max(), f"scores differ by up to {difference:.2g}")


def renumbered_profiles(profiles: FactorProfiles, items: Tensor) -> FactorProfiles:
    """The same profiles, of items whose new numbers are ``items [n_items]``."""
    moved = items[profiles.items]
    order = torch.argsort(moved, stable=True)
    return replace(profiles, items=moved[order], values=profiles.values[order])


@rule("an item without a vector never yields NaN, and what is stored in its place changes nothing")
def check_missing(case: Case) -> None:
    """Rows of absent items hold zeros by contract; here they hold garbage."""
    batch, modalities = case.batch(), case.modalities()
    garbage = {
        name: replace(m, values=torch.where(m.present.unsqueeze(1), m.values, 100.0 + m.values))
        for name, m in modalities.items()
    }
    host, other = case.build(), case.build(modalities=garbage)
    require(torch.equal(host.scores(batch), other.scores(batch)), "the scores read absent vectors")
    loss = step_loss(host, batch)
    require(torch.equal(loss, step_loss(other, batch)), "the loss reads absent vectors")
    finite(host, loss, batch)
    require(torch.equal(host.scores(batch), other.scores(batch)), "after a step the scores read absent vectors")


@rule("at its identity settings a plugin leaves loss, gradients and scores bit-equal to the bare backbone's")
def check_identity(case: Case) -> None:
    """Off means off."""
    case = case.at_identity()
    bare, host, batch = case.backbone().train(), case.build(), case.batch()
    torch.manual_seed(6)
    expected, loss = bare.loss(batch), step_loss(host, batch)
    require(torch.equal(expected, loss), f"the loss is {loss:.8g}, the bare backbone's {expected:.8g}")
    expected.backward()
    loss.backward()
    mine = dict(host.backbone.named_parameters())
    for name, parameter in bare.named_parameters():
        require(
            parameter.grad is mine[name].grad is None or torch.equal(parameter.grad, mine[name].grad),  # type: ignore[arg-type]
            f"the gradient of {name} differs",
        )
    with torch.no_grad():
        require(torch.equal(bare.eval().scores(batch), host.scores(batch)), "the scores differ")


@rule("a deep copy gives the same outputs, takes the same next step and shares no parameter")
def check_deepcopy(case: Case) -> None:
    """RecBole copies a model right after construction; others copy it in the middle of training."""
    host, batch = case.build(), case.batch()
    for _ in range(2):
        twin = copy.deepcopy(host)
        require(not (seen := same_future(host, twin, batch)), seen)
        before = {name: parameter.detach().clone() for name, parameter in host.named_parameters()}
        trained(twin, batch)
        for name, parameter in host.named_parameters():
            require(torch.equal(before[name], parameter), f"training the copy changed {name}")
        step_loss(trained(host, batch), batch)  # what a step leaves behind is copied in the second round


@rule("a state dict, saved and loaded into a new model, gives the same outputs and the same next step")
def check_state_dict(case: Case) -> None:
    """Whatever training changes is saved, the noise's position too."""
    host, batch = trained(case.build(), case.batch()), case.batch()
    file = io.BytesIO()
    torch.save(host.state_dict(), file)
    file.seek(0)
    other = case.build()
    other.load_state_dict(torch.load(file, weights_only=True))
    require(not (seen := same_future(host, other, batch)), seen)


@rule("a pickled model gives the same outputs and the same next step")
def check_pickle(case: Case) -> None:
    """Checkpoints and worker processes pickle."""
    host, batch = trained(case.build(), case.batch()), case.batch()
    require(not (seen := same_future(host, pickle.loads(pickle.dumps(host)), batch)), seen)


@rule("under bfloat16 autocast, loss, gradients and scores are finite")
def check_autocast(case: Case) -> None:
    """Mixed precision."""
    host, batch = case.build(), case.batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = step_loss(host, batch)
        require(host.scores(batch).isfinite().all(), "a score is not finite")
    finite(host, loss, batch)


@rule("a batch of one user with one item works, and a user's scores do not depend on the batch")
def check_batch_of_one(case: Case) -> None:
    """The last batch of an epoch, and RecBole's count of FLOPs."""
    host, batch = case.build(), case.batch()
    one = Batch(**{name: None if value is None else value[2:3] for name, value in vars(batch).items()})
    assert one.sequence is not None
    scores, alone = host.scores(batch)[2:3], host.scores(one)
    require(torch.allclose(scores, alone, atol=1e-5), "a user's scores depend on the other users of the batch")
    one = replace(one, sequence=one.sequence[:, :1])
    finite(host, step_loss(host, one), one)


@rule("evaluation draws no random numbers and changes nothing")
def check_evaluation(case: Case) -> None:
    """Scores, of other users in between, and diagnostics."""
    host, batch = trained(case.build(), case.batch()), case.batch()
    before, state = torch.get_rng_state(), snapshot(host)
    scores = host.scores(batch)
    host.scores(Batch(**{name: None if value is None else value.flip(0) for name, value in vars(batch).items()}))
    with torch.no_grad(), host.eval().chain.serving():
        for augmentation in host.chain.augmentations().values():
            augmentation.diagnostics()
    require(torch.equal(scores, host.scores(batch)), "two evaluations differ")
    require(torch.equal(before, torch.get_rng_state()), "the global random state has moved")
    after = snapshot(host)
    for name in state:
        require(torch.equal(state[name], after[name]), f"{name} has changed")


@rule("a plugin is built the same at every time, and leaves Python's random state and the data as they were")
def check_construction(case: Case) -> None:
    """The adapter forks and seeds torch's random state around it."""
    state, modalities = random.getstate(), case.modalities()
    first, second = case.build(modalities=modalities), case.build(modalities=modalities)
    require(state == random.getstate(), "Python's random state has moved")
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        require(torch.equal(one, other), f"{name} begins differently")
    for name, modality in case.modalities().items():
        require(torch.equal(modality.values, modalities[name].values), f"the vectors of {name} were written to")


@rule("in training a plugin draws from generators of its own, so that the host's dropout is not shifted")
def check_host_dropout(case: Case) -> None:
    """The global random state after a step is the bare backbone's."""
    bare, host, batch = case.backbone().train(), case.build(), case.batch()
    torch.manual_seed(6)
    bare.loss(batch).backward()
    expected = torch.get_rng_state()
    step_loss(host, batch).backward()
    require(torch.equal(expected, torch.get_rng_state()), "the global random state has moved")


@rule("every tensor made inside a step is made on the device of its inputs")
def check_device(case: Case) -> None:
    """A step on the CPU while another device is the default one."""
    expected, host, batch = step_loss(case.build(), case.batch()), case.build(), case.batch()
    with torch.device("meta"):
        loss = step_loss(host, batch)
        loss.backward()
        host.scores(batch)
    require(torch.equal(expected, loss), "the loss differs")
