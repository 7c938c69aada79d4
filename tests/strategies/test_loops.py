"""Loader and schedules inside the loops of others: Lightning, accelerate, transformers."""

import itertools
import logging
import pickle
import warnings

import accelerate.state
import pytest
import pytorch_lightning as pl
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import Dataset

from steepest.schedules import CosineLR, RestartFromBest, WarmupLR, range_test
from steepest.strategies import AdaptiveBatch, BatchGrowth, GradientNoise, Levels, Loader, Shuffled
from tests.schedules.cases import sgd, through_a_file, walk

ROWS, SIZE, SEED = 65, 10, 3  # seven batches, the last of five
X = torch.arange(float(ROWS))[:, None]
STILL = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
    "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip
LOSSES = [1.0, 1.0, 0.9, 0.8, 0.8, 0.8, 0.8, 0.5, 0.5, 0.5, 0.5, 0.5]
"""What the plateau hears, epoch by epoch."""


@pytest.fixture(autouse=True)
def _alone(caplog, tmp_path, monkeypatch):
    torch.set_num_threads(1)  # conftest sets it back
    monkeypatch.chdir(tmp_path)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    filters = warnings.filters[:]  # accelerate adds one
    yield
    warnings.filters[:] = filters
    for state in (accelerate.state.AcceleratorState, accelerate.state.PartialState):
        state._reset_state()
    accelerate.state.GradientState._reset_state()


class Drawn(Dataset):
    """Its sample k is k and a number that is drawn."""

    def __len__(self):
        return ROWS

    def __getitem__(self, k):
        return torch.tensor(float(k)), torch.rand(())


DATA = {"tensors": lambda: (X,), "random": Drawn}


def made(data="tensors", **options):
    return Loader(DATA[data](), SIZE, seed=SEED, **options)


def told(batch):
    return [column.flatten().tolist() for column in batch]


def plain(epochs, data="tensors"):
    loader = made(data)
    return [[told(batch) for batch in loader] for _ in range(epochs)]


def two_warmups(optimizer):
    """One warm-up behind the other, and a plateau."""
    plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    return WarmupLR(WarmupLR(plateau, 3, 0.5), 2, 0.1)


# what the plain loop gives: 2 epochs from 0.1 to 1 of half the lr, 3 from there to lr, then halved
# with each epoch that is not better than the best by a part in 10,000
PLAIN = [
    0.1 * share
    for share in (0.05, 0.275, 0.5, 4 / 6, 5 / 6, 1, 1, 0.5, 0.5, 0.25, 0.125, 0.0625)
]  # fmt: skip


class Module(pl.LightningModule):
    """Notes its batches and lr at each step, epoch by epoch."""

    def __init__(self, configure):
        super().__init__()
        self.layer, self.configure = nn.Linear(1, 1), configure
        self.batches, self.lrs = [], []

    def configure_optimizers(self):
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return {"optimizer": self.optimizer, "lr_scheduler": self.configure(self.optimizer)}

    def on_train_epoch_start(self):
        self.batches.append([])
        self.lrs.append([])

    def training_step(self, batch, k):
        if not self.batches:  # in the middle of an epoch none is started
            self.on_train_epoch_start()
        self.batches[-1].append(told(batch))
        self.lrs[-1].append(self.optimizer.param_groups[0]["lr"])
        self.log("metric", LOSSES[self.current_epoch])
        return self.layer(batch[0].reshape(-1, 1) / ROWS).square().mean()


@pytest.mark.filterwarnings("ignore")  # Lightning's own advice
@pytest.mark.parametrize("config", [{}, {"reduce_on_plateau": True}], ids=["asked", "said"])
def test_lightning_with_a_loader_two_warm_ups_and_a_plateau_is_a_plain_loop(config):
    module = Module(lambda o: {"scheduler": two_warmups(o), "monitor": "metric", **config})
    loader = made()
    pl.Trainer(max_epochs=len(LOSSES), **STILL).fit(module, loader)
    assert [len(epoch) for epoch in module.batches] == [7] * len(LOSSES)
    assert module.batches == plain(len(LOSSES))
    assert [[lr] * 7 for lr in PLAIN] == [pytest.approx(epoch) for epoch in module.lrs]
    assert (loader.epoch, loader.position) == (len(LOSSES), 0)


@pytest.mark.filterwarnings("ignore")
def test_lightning_by_steps_warms_up_by_steps():
    module = Module(
        lambda o: {"scheduler": WarmupLR(ReduceLROnPlateau(o, patience=0), 9, 0.1),
                   "monitor": "metric", "interval": "step"}
    )  # fmt: skip
    pl.Trainer(max_epochs=2, **STILL).fit(module, made())
    seen = list(itertools.chain(*module.lrs))
    # nine steps of warm-up; the tenth metric is the first that the plateau hears, and the best
    expected = [0.1 * (0.1 + 0.1 * k) for k in range(9)] + [0.1] * 2
    assert seen[:11] == pytest.approx(expected)
    assert seen[11:] == pytest.approx([0.01, 0.001, 0.0001])


@pytest.mark.filterwarnings("ignore")
def test_lightning_with_one_scheduler_on_two_clocks():
    class Both(Module):
        def configure_optimizers(self):
            self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            both = WarmupLR(ReduceLROnPlateau(self.optimizer, factor=0.5, patience=0), 9, 0.1)
            steps = {"scheduler": both, "interval": "step", "reduce_on_plateau": False}
            return [self.optimizer], [steps, {"scheduler": both, "monitor": "metric"}]

    module = Both(None)
    pl.Trainer(max_epochs=5, **STILL).fit(module, made())
    seen = list(itertools.chain(*module.lrs))
    assert seen[:9] == pytest.approx([0.1 * (0.1 + 0.1 * k) for k in range(9)])
    # epochs 1 to 4 are heard: 1, 0.9, 0.8, 0.8
    assert seen[9:] == pytest.approx([0.1] * 26)
    assert module.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.filterwarnings("ignore")
def test_lightning_with_growth_by_a_plateau():
    loader = made()
    module = Module(
        lambda o: {"scheduler": BatchGrowth(ReduceLROnPlateau(o, factor=0.5, patience=0), loader),
                   "monitor": "metric"}
    )  # fmt: skip
    pl.Trainer(max_epochs=5, **STILL).fit(module, loader)
    # after the second epoch, which was no better; the lr stays
    assert [len(epoch[0][0]) for epoch in module.batches] == [10, 10, 20, 20, 20]
    assert {*itertools.chain(*module.lrs)} == {0.1}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stop", [4, 7, 10])
def test_lightning_goes_on_in_the_middle_of_an_epoch(stop, tmp_path):
    def steps(optimizer):
        return WarmupLR(WarmupLR(CosineLR(optimizer, 25), 3, 0.5), 5, 0.1)

    def configure(optimizer):
        return {"scheduler": steps(optimizer), "interval": "step"}

    first, again = Module(configure), Module(configure)
    keep = pl.callbacks.ModelCheckpoint(tmp_path, "there", every_n_train_steps=stop, save_top_k=1)
    still = {**STILL, "enable_checkpointing": True}
    pl.Trainer(max_epochs=1 + stop // 8, callbacks=[keep], **still).fit(first, made("random"))
    pl.Trainer(max_epochs=4, **STILL).fit(
        again, made("random"), ckpt_path=tmp_path / "there.ckpt", weights_only=False
    )
    for kept in (first.batches, first.lrs):  # as far as the checkpoint knows
        kept[:] = [list(itertools.chain(*kept))[:stop]]
    seen = [*itertools.chain(*first.batches), *itertools.chain(*again.batches)]
    assert seen == list(itertools.chain(*plain(4, "random")))
    lrs = [*itertools.chain(*first.lrs), *itertools.chain(*again.lrs)]
    optimizer = sgd()
    assert lrs == [lr for (lr,) in walk(optimizer, steps(optimizer), 28)]


# accelerate


def prepared(loader, **options):
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
    return accelerator.prepare(loader)


def test_accelerate_with_a_loader_two_warm_ups_and_a_plateau_is_a_plain_loop():
    model, accelerator = nn.Linear(1, 1), Accelerator(cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = two_warmups(optimizer)
    loader = made()
    model, optimizer, batches, stepped = accelerator.prepare(model, optimizer, loader, scheduler)
    seen, lrs = [], []
    for metric in LOSSES:
        seen.append([])
        for batch in batches:
            seen[-1].append(told(batch))
            lrs.append(optimizer.param_groups[0]["lr"])
            optimizer.zero_grad()
            accelerator.backward(model(batch[0] / ROWS).square().mean())
            optimizer.step()
        stepped.step(metric)
    assert seen == plain(len(LOSSES))
    assert lrs == pytest.approx([lr for lr in PLAIN for _ in range(7)])
    assert (loader.epoch, loader.position) == (len(LOSSES), 0)


WAYS = {
    "shard": {}, "split": {"split_batches": True}, "dispatch": {"dispatch_batches": True},
    "both": {"split_batches": True, "dispatch_batches": True},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_accelerates_loader_goes_on_where_ours_says(way):
    expected = plain(3, "random")
    for stop in range(9):
        loader = made("random")
        batches = prepared(loader, **WAYS[way])
        seen = [told(b) for b in itertools.islice(batches, stop)] if stop else []
        if stop > 7:
            continue  # an epoch has seven
        saved = through_a_file(loader.state_dict())
        assert (saved["epoch"], saved["position"]) == ((1, 0) if stop == 7 else (0, 10 * stop))
        again = made("random")
        again.load_state_dict(saved)
        rest = prepared(again, **WAYS[way])
        seen = [seen + [told(b) for b in rest]] if stop < 7 else [seen]
        seen += [[told(b) for b in rest] for _ in range(3 - len(seen))]
        assert seen == expected, stop


@pytest.mark.parametrize("way", WAYS)
def test_every_pass_of_accelerates_loader_is_a_new_epoch(way):
    expected = plain(6)
    loader = made()
    batches = prepared(loader, **WAYS[way])
    assert [told(b) for b in batches] == expected[0]
    assert [told(b) for _, b in zip(range(7), batches, strict=False)] == expected[1]
    next(iter(batches))  # and that was the third
    assert [told(b) for b in batches] == expected[3]
    batches.set_epoch(5)
    assert [told(b) for b in batches] == expected[5]
    batches.set_epoch(0)  # no order comes twice
    assert [told(b) for b in batches] not in expected
    assert (loader.epoch, loader.position) == (7, 0)


def test_accelerate_skips_batches_of_the_epoch_that_comes():
    accelerator, loader = Accelerator(cpu=True), made()
    batches, expected = accelerator.prepare(loader), plain(3)
    assert [told(b) for b in batches] == expected[0]
    assert [told(b) for b in accelerator.skip_first_batches(batches, 2)] == expected[1][2:]
    assert [told(b) for b in batches] == expected[2]


def test_accelerate_saves_a_loader_that_is_registered(tmp_path):
    accelerator, loader = Accelerator(cpu=True), made()
    accelerator.register_for_checkpointing(loader)
    batches = accelerator.prepare(loader)
    seen = [told(b) for b in itertools.islice(batches, 4)]
    accelerator.save_state(tmp_path)
    rest = [told(b) for b in batches]  # of another epoch
    accelerator.load_state(tmp_path)
    expected = plain(4)
    assert seen + [told(b) for b in batches] == expected[0]
    assert rest == expected[1]
    assert [[told(b) for b in batches] for _ in range(3)] == expected[1:]  # and counts on


def test_a_state_that_was_loaded_says_more_than_a_loop_that_counts():
    loader, expected = made(), plain(3)
    loader.load_state_dict({**loader.state_dict(), "epoch": 1, "position": 30})
    batches = prepared(loader)
    batches.set_epoch(7)
    assert [told(b) for b in batches] == expected[1][3:]
    assert [told(b) for b in batches] == expected[2]


class Short(Shuffled):
    """A sampler with fewer samples than it says."""

    def __iter__(self):
        return iter([*super().__iter__()][:55])


def test_a_sampler_that_is_shorter_than_it_says_ends_accelerates_epochs():
    loader = Loader((X,), SIZE, sampler=Short(ROWS))
    batches = prepared(loader)
    for epoch in (1, 2):
        assert sum(len(b[0]) for b in batches) == 55
        assert (loader.epoch, loader.position) == (epoch, 0)


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", [False, True])
def test_accelerates_loader_with_workers(dispatch):
    """A worker draws ahead: the position is right, but that the last two batches count at once."""
    expected = plain(2, "random")
    for stop in (1, 4, 7):
        loader = made("random", num_workers=1, prefetch_factor=3)
        batches = prepared(loader, dispatch_batches=dispatch)
        seen = [told(b) for b in itertools.islice(batches, stop)]
        assert (loader.epoch, loader.position) == ((1, 0) if stop == 7 else (0, 10 * stop))
        again = made("random")
        again.load_state_dict(loader.state_dict())
        rest = prepared(again)
        seen = [seen + [told(b) for b in rest]] if stop < 7 else [seen]
        assert [*seen, [told(b) for b in rest]] == expected
    loader = made("random", num_workers=1, prefetch_factor=3)
    batches = prepared(loader, dispatch_batches=dispatch)
    assert [[told(b) for b in batches] for _ in range(2)] == expected
    assert (loader.epoch, loader.position) == (2, 0)


@pytest.mark.parametrize("split", [False, True])
def test_two_processes_share_every_epoch_of_accelerates_loader(split):
    loaders = [Loader((X[:60],), SIZE, seed=SEED) for _ in range(2)]
    shares = [
        prepare_data_loader(
            loader, num_processes=2, process_index=rank, split_batches=split, put_on_device=False
        )
        for rank, loader in enumerate(loaders)
    ]
    orders = []
    for _ in range(3):
        seen = [torch.cat([b[0].flatten() for b in share]).tolist() for share in shares]
        assert len(seen[0]) == len(seen[1]) == 30
        assert {*seen[0], *seen[1]} == {*range(60)}
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2]
    assert [(loader.epoch, loader.position) for loader in loaders] == [(3, 0)] * 2


@pytest.mark.parametrize("split", [False, True])
def test_what_is_random_is_the_same_again_in_two_processes(split):
    def shares(seed):
        torch.manual_seed(seed)
        seen = []
        for rank in range(2):
            share = prepare_data_loader(
                made("random"), num_processes=2, process_index=rank, split_batches=split,
                put_on_device=False,
            )  # fmt: skip
            seen.append([told(batch) for batch in share])
        return seen

    first, again = shares(1), shares(2)
    # one batch is made up of samples that come twice, which are drawn anew
    last = None if split else -1
    assert first[0] == again[0]
    assert first[1][:last] == again[1][:last]
    drawn = [x for share in first for _, column in share for x in column]
    assert len({*drawn}) == len(drawn)


def wrapped(kind):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if kind == "accelerate":
        return Accelerator(cpu=True).prepare(model, optimizer)
    if kind == "lightning":
        return model, pl.core.optimizer.LightningOptimizer(optimizer)
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    return fabric.setup(model, optimizer)


def loss_of(model, batch):
    return (model(batch[0] / ROWS) - 1).square().mean()


@pytest.mark.parametrize("kind", ["accelerate", "lightning", "fabric"])
def test_noise_and_range_test_take_a_wrapped_optimizer(kind):
    torch.manual_seed(1)
    plainly = nn.Linear(1, 1)
    torch.manual_seed(1)
    model, optimizer = wrapped(kind)
    steps, loader = torch.optim.SGD(plainly.parameters(), lr=0.1), made()
    for p, q in zip(model.parameters(), plainly.parameters(), strict=True):
        assert torch.equal(p, q)
        p.grad, q.grad = torch.zeros_like(p), torch.zeros_like(q)
    found = range_test(model, optimizer, loss_of, loader, steps=12, seeds=2)
    expected = range_test(plainly, steps, loss_of, made(), steps=12, seeds=2)
    assert found.losses == expected.losses
    noises = [GradientNoise(o, eta=0.3, seed=4) for o in (optimizer, steps)]
    if kind != "lightning":  # whose step wants a trainer around it
        optimizer.step()
        steps.step()
        for p, q in zip(model.parameters(), plainly.parameters(), strict=True):
            assert torch.equal(p, q)
        assert [noise.t for noise in noises] == [1, 1]


def test_a_range_test_leaves_accelerates_loader_where_it_was():
    model, optimizer = wrapped("accelerate")
    loader = made()
    batches, expected = prepared(loader), plain(2)
    assert [told(b) for b in batches] == expected[0]
    range_test(model, optimizer, loss_of, batches, steps=12, seeds=2)
    assert (loader.epoch, loader.position) == (1, 0)
    assert [told(b) for b in batches] == expected[1]


@pytest.mark.parametrize("make", [
    lambda m, o, given: BatchGrowth(lr_scheduler.ExponentialLR(o, 0.5), given),
    lambda m, o, given: AdaptiveBatch(m, loss_of, o, given),
])  # fmt: skip
def test_what_sets_the_batch_size_asks_for_the_loader_itself(make):
    model, loader = nn.Linear(1, 1), made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="pass the Loader itself, not what prepare"):
        make(model, optimizer, prepared(loader))
    make(model, optimizer, loader)


def test_growth_reaches_accelerates_loader():
    loader, optimizer = made(), torch.optim.SGD([nn.Parameter(X[:1])], lr=0.1)
    batches = prepared(loader)
    growth = BatchGrowth(lr_scheduler.ExponentialLR(optimizer, 0.5), loader)
    sizes = []
    for _ in range(3):
        sizes.append([len(b[0]) for b in batches])
        optimizer.step()
        growth.step()
    assert sizes == [[10] * 6 + [5], [20] * 3 + [5], [40, 25]]


# who asks by isinstance


@pytest.mark.parametrize("make", [
    lambda o: WarmupLR(ReduceLROnPlateau(o), 3),
    two_warmups,
    lambda o: WarmupLR(RestartFromBest(o, nn.Linear(1, 1)), 3),
    lambda o: BatchGrowth(ReduceLROnPlateau(o), made()),
    lambda o: BatchGrowth(WarmupLR(ReduceLROnPlateau(o), 3), made()),
])  # fmt: skip
def test_what_wants_a_metric_says_so(make):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = make(optimizer)
    assert isinstance(scheduler, ReduceLROnPlateau)
    patience = scheduler.patience
    assert patience == (0 if make is two_warmups else 10)
    assert not hasattr(scheduler, "nothing of that name")
    with pytest.raises(ValueError, match="does not support `ReduceLROnPlateau`"):
        lr_scheduler.SequentialLR(optimizer, [scheduler], [])
    if not isinstance(scheduler, BatchGrowth):
        again = pickle.loads(pickle.dumps(scheduler))
        assert isinstance(again, WarmupLR)
        assert again.patience == patience


def test_what_wants_none_does_not_say_so():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    for scheduler in (
        WarmupLR(CosineLR(optimizer, 9), 3),
        BatchGrowth(lr_scheduler.ExponentialLR(optimizer, 0.9), made()),
    ):
        assert not isinstance(scheduler, ReduceLROnPlateau)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers_hands_its_metric_on(tmp_path):
    from transformers import Trainer, TrainingArguments

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, x):
            return {"loss": self.layer(x / ROWS).square().mean()}

    model, loader, seen, lrs = Model(), made(), [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    class Ours(Trainer):
        def get_train_dataloader(self):
            return self.accelerator.prepare(loader)

        def training_step(self, model, inputs, *rest):
            seen.append(told(inputs))
            lrs.append(optimizer.param_groups[0]["lr"])
            return super().training_step(model, {"x": inputs[0]}, *rest)

        def evaluate(self, *_, **__):
            return {"eval_loss": LOSSES[len(seen) // 7 - 1]}

    arguments = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=8, eval_strategy="epoch", report_to=[],
        metric_for_best_model="loss", save_strategy="no", use_cpu=True, disable_tqdm=True,
        logging_strategy="no",
    )  # fmt: skip
    trainer = Ours(
        model, arguments, train_dataset=range(ROWS), eval_dataset=range(1),
        optimizers=(optimizer, two_warmups(optimizer)),
    )  # fmt: skip
    trainer.train()
    assert seen == list(itertools.chain(*plain(8)))
    assert lrs == pytest.approx([lr for lr in PLAIN[:8] for _ in range(7)])


# what a range test, and a trainer that wants another order, leave behind


def test_a_range_test_leaves_a_loader_as_it_was():
    """Size, order and what it was told, too."""
    levels = Levels([0] * 40 + [1] * 25, "naive", seed=1)
    loader = Loader((X,), SIZE, sampler=levels)
    untouched = Loader((X,), SIZE, sampler=Levels([0] * 40 + [1] * 25, "naive", seed=1))

    def growing(model, batch):
        loader.batch_size = 20
        levels.level = 1
        return loss_of(model, batch)

    for each in (loader, untouched):
        assert len([*each]) == 7
        each.batch_sampler.set_epoch(4)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = loader.state_dict()
    range_test(model, optimizer, growing, loader, steps=12, seeds=2)
    assert loader.state_dict() == state
    for epoch in (4, 5):
        assert [told(b) for b in loader] == [told(b) for b in untouched]
        assert loader.epoch == untouched.epoch == epoch + 1
    loader.batch_sampler.set_epoch(9)  # and it hears
    assert len([*loader]) == 7
    assert loader.epoch == 10


@pytest.mark.filterwarnings("ignore")
def test_lightning_says_what_to_do_where_it_wants_another_order():
    class Predicts(Module):
        def predict_step(self, batch, k):
            return self.layer(batch[0])

    module = Predicts(lambda o: {"scheduler": CosineLR(o, 9)})
    with pytest.raises(TypeError, match="in Lightning predict with a DataLoader"):
        pl.Trainer(**STILL).predict(module, made())
    with pytest.raises(TypeError, match="overfit with shuffle=False"):
        pl.Trainer(overfit_batches=1, max_epochs=2, **STILL).fit(module, made())
    module.batches, module.lrs = [], []
    pl.Trainer(overfit_batches=2, max_epochs=3, **STILL).fit(module, made(shuffle=False))
    first = [[list(map(float, range(k, k + SIZE)))] for k in (0, SIZE)]
    assert module.batches == [first] * 3


class Other(torch.optim.SGD):
    """An optimizer around another one, of no trainer."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups[0]["params"], lr=0.1)
        self.optimizer = optimizer


def test_what_is_no_trainers_wrapper_is_not_looked_into():
    inner = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    holder = type("Holder", (), {"optimizer": inner})()
    module = Module(None)
    module.optimizer = inner
    for given in (holder, CosineLR(inner, 9), lr_scheduler.StepLR(inner, 3), module):
        with pytest.raises(TypeError, match="expected an optimizer"):
            GradientNoise(given)
        with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module and an optimizer"):
            range_test(nn.Linear(1, 1), given, loss_of, [(X,)])
    outer = Other(inner)
    GradientNoise(outer)
    assert outer._optimizer_step_pre_hooks
    assert not inner._optimizer_step_pre_hooks
