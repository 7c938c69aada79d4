"""param_groups: what decays, which layer and which rule, by whatever a model is made of."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules import batchnorm, instancenorm, normalization
from torch.nn.utils import parametrizations

import steepest
from steepest.groups import ParamGroups, param_groups


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2)
        self.mlp = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width))
        self.gain = nn.Parameter(torch.ones(width))


class Transformer(nn.Module):
    """Tied, with bare parameters of one to three dimensions."""

    def __init__(self, width=8, depth=3, tied=True):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.embedding = nn.Embedding(20, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.temperature = nn.Parameter(torch.ones(1))  # fully_shard takes no 0-d
        self.head = nn.Linear(width, 20, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, x):
        x = self.embedding(x) + self.token
        for block in self.blocks:
            x = x + block.mlp(block.norm(x)) * block.gain
        return self.head(self.norm(x)) * self.temperature


def names(groups, **entries):
    """The names in all groups that have these entries."""
    found = [g for g in groups if all(g.get(k) == v for k, v in entries.items())]
    return {n for g in found for n, _ in g["params"]}


def still(model, **options):
    return names(param_groups(model, weight_decay=0.1, **options), weight_decay=0.0)


def shape(groups):
    """Groups without their tensors."""
    return [{**g, "params": [n for n, _ in g["params"]]} for g in groups]


# what decays


def test_no_decay_on_biases_norms_and_vectors():
    expected = {
        n for n, p in Transformer().named_parameters() if p.dim() < 2
    }  # the rule of nanoGPT and timm; here all biases and norms are vectors
    assert still(Transformer()) == expected
    groups = param_groups(Transformer(), weight_decay=0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert {"token", "embedding.weight"} <= names(groups, weight_decay=0.1)


@pytest.mark.slow  # the import
@pytest.mark.parametrize("name", ["Llama", "Bert", "ViT"])
def test_what_decays_is_what_transformers_decays(name):
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{name}Config")(**sizes, intermediate_size=16)
    if name == "ViT":
        config.image_size, config.patch_size = 8, 4
    else:
        config.vocab_size, config.pad_token_id = 32, 0
    model = transformers.AutoModel.from_config(config)
    theirs = transformers.Trainer.get_decay_parameter_names(None, model)
    groups = param_groups(model, weight_decay=0.1)
    assert names(groups, weight_decay=0.1) == set(theirs)
    assert names(groups, weight_decay=0.0)


NORMS = {
    "BatchNorm1d": (4,), "BatchNorm2d": (4,), "BatchNorm3d": (4,), "SyncBatchNorm": (4,),
    "InstanceNorm1d": (4, 1e-5, 0.1, True), "InstanceNorm2d": (4, 1e-5, 0.1, True),
    "InstanceNorm3d": (4, 1e-5, 0.1, True), "LayerNorm": ((2, 3, 4),), "RMSNorm": ((3, 4),),
    "GroupNorm": (2, 4), "LocalResponseNorm": (2,), "CrossMapLRN2d": (2,),
}  # fmt: skip


def test_every_norm_of_torch_is_known_by_its_type():
    public = {n for m in (batchnorm, instancenorm, normalization) for n in m.__all__}
    assert {n for n in public if not n.startswith("Lazy")} == set(NORMS)
    for name, arguments in NORMS.items():
        norm = getattr(nn, name)(*arguments)
        model = nn.Module()
        model.layer, model.linear = norm, nn.Linear(2, 2)
        parameters = {f"layer.{n}" for n, _ in norm.named_parameters()}
        groups = param_groups(model, weight_decay=0.1)
        assert names(groups, weight_decay=0.0) == parameters | {"linear.bias"}
        assert f"norm ({len(parameters)})" in str(groups) or not parameters


@pytest.mark.parametrize("name", ["LazyBatchNorm1d", "LazyBatchNorm2d", "LazyInstanceNorm3d"])
def test_a_lazy_norm_is_refused_until_it_has_a_shape(name):
    options = {"affine": True} if "Instance" in name else {}
    norm = getattr(nn, name)(**options)
    with pytest.raises(ValueError, match=r"'0\.weight' has no shape yet; run one batch"):
        param_groups(nn.Sequential(norm), weight_decay=0.1)
    dims = {"1d": 0, "2d": 2, "3d": 3}[name[-2:]]
    norm(torch.randn(4, 3, *[2] * dims))
    assert still(nn.Sequential(norm)) == {"0.weight", "0.bias"}


def test_a_lazy_linear_is_refused_until_it_has_a_shape():
    model = nn.ModuleDict({"a": nn.LazyLinear(3)})
    with pytest.raises(ValueError, match=r"'a\.weight' has no shape yet; run one batch"):
        param_groups(model, weight_decay=0.1)
    model["a"](torch.ones(1, 2))
    assert still(model) == {"a.bias"}


@pytest.mark.parametrize(
    ("module", "biases"),
    [
        (nn.LSTM(2, 4, proj_size=3), {"bias_ih_l0", "bias_hh_l0"}),
        (nn.MultiheadAttention(4, 2, kdim=3, vdim=2, add_bias_kv=True),
         {"in_proj_bias", "out_proj.bias", "bias_k", "bias_v"}),
        (nn.Bilinear(2, 3, 1), {"bias"}),
        (nn.ConvTranspose2d(2, 3, 2), {"bias"}),
        (nn.ParameterDict({"bias": torch.ones(2, 2), "w": torch.ones(2, 2)}), {"bias"}),
        (nn.PReLU(3), {"weight"}),
    ],
    ids=lambda x: type(x).__name__,
)  # fmt: skip
def test_biases_are_found_by_attribute(module, biases):
    assert still(module) == biases
    assert (
        names(param_groups(module, weight_decay=0.1), weight_decay=0.1)
        == {n for n, _ in module.named_parameters()} - biases
    )


def test_a_bias_with_many_dimensions_is_one_and_a_biased_module_is_not():
    model = nn.Module()
    model.relative_position_bias_table = nn.Parameter(torch.ones(9, 2))
    model.biases = nn.ParameterList([torch.ones(2, 2)])
    model.weights = nn.ParameterList([torch.ones(2, 2), torch.ones(2), torch.ones(())])
    model.relative_attention_bias = nn.Embedding(4, 2)
    model.bias_proj = nn.Linear(2, 2)
    model.unbiased = nn.Parameter(torch.ones(2, 2))
    assert still(model) == {
        "relative_position_bias_table", "biases.0", "weights.1", "weights.2",
        "relative_attention_bias.weight", "bias_proj.bias",
    }  # fmt: skip


def test_parts_of_a_parametrized_tensor_count_as_it():
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 4)),
        parametrizations.weight_norm(nn.LayerNorm((2, 3)), dim=0),
        parametrizations.orthogonal(nn.Linear(3, 3)),
    )
    nn.utils.parametrize.register_parametrization(model[2], "bias", nn.Identity())
    expected = {n for n, _ in model.named_parameters() if n.startswith("1.") or "bias" in n}
    assert "1.parametrizations.weight.original1" in expected
    assert "2.parametrizations.bias.original" in expected
    assert still(model) == expected


def test_embeddings_by_choice_with_the_head_that_is_tied_to_them():
    model = Transformer()
    assert "embedding.weight" not in still(model)
    assert "embedding.weight" in still(model, decay_embeddings=False)
    model = nn.Sequential(nn.EmbeddingBag(3, 2), nn.Linear(2, 3))
    assert still(model, decay_embeddings=False) == {"0.weight", "1.bias"}


class MyNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, 2))
        self.inner = nn.Linear(2, 2)


def test_what_the_user_declares_goes_first():
    def model():
        return nn.Sequential(MyNorm(), nn.Linear(2, 2), nn.LayerNorm(2))

    assert still(model()) == {"0.inner.bias", "1.bias", "2.weight", "2.bias"}
    assert still(model(), no_decay=MyNorm) >= {"0.scale", "0.inner.weight"}
    assert still(model(), no_decay="*.scale") >= {"0.scale"}
    assert "0.inner.weight" not in still(model(), no_decay=["*.scale"])
    assert "1.weight" in still(model(), no_decay="1")  # a module's name is all below it
    assert still(model(), no_decay=lambda n, p: p.shape == (2, 2) and n > "1") >= {"1.weight"}
    assert still(model(), decay=(nn.LayerNorm, "1.bias")) == {"0.inner.bias"}
    with pytest.raises(ValueError, match=r"'2\.bias' is matched by both decay and no_decay"):
        param_groups(model(), weight_decay=0.1, decay="2.bias", no_decay=nn.LayerNorm)


def test_what_the_model_declares():
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(torch.ones(1, 3, 2))
            self.state = nn.Parameter(torch.ones(3, 2))
            self.state._no_weight_decay = True
            self.linear = nn.Linear(2, 2)

        def no_weight_decay(self):
            return {"position", "distillation"}  # such lists name what only some variants have

    model = nn.Sequential(Backbone())
    assert still(model) == {"0.position", "0.state", "0.linear.bias"}
    assert still(model, decay="0.position") == {"0.state", "0.linear.bias"}
    assert "declared (2)" in str(param_groups(model, weight_decay=0.1))


@pytest.mark.parametrize("argument", ["decay", "no_decay", "rules", "layers"])
def test_a_pattern_that_matches_nothing_is_an_error(argument):
    value = [{"where": "haed"}] if argument == "rules" else ["haed"]
    more = {"layer_decay": 0.5, "lr": 1.0} if argument == "layers" else {}
    with pytest.raises(ValueError, match=r"'haed', which matches no parameter; the names look"):
        param_groups(Transformer(), weight_decay=0.1, **{argument: value}, **more)


def test_a_parameter_of_contradictory_kinds_is_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm((2, 2)))
    model[1].weight = model[0].weight
    both = r"'0\.weight' \(weight\) and '1\.weight' \(norm\) are one tied parameter"
    with pytest.raises(ValueError, match=both):
        param_groups(model, weight_decay=0.1)
    assert "0.weight" in still(model, no_decay="1.weight")  # any of its names will do
    assert "0.weight" not in still(model, decay="0.weight")


# frozen, tied, wrapped


def test_frozen_parameters_are_left_out_and_shown():
    model = Transformer(tied=False)
    model.embedding.requires_grad_(False)
    groups = param_groups(model, weight_decay=0.1)
    assert "embedding.weight" not in names(groups)
    assert [n for n, _ in groups.frozen] == ["embedding.weight"]
    assert "left out" in str(groups)
    assert "requires_grad=False: embedding.weight" in str(groups)
    with pytest.raises(ValueError, match="has 2 parameters, but none requires a gradient"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), weight_decay=0.1)
    with pytest.raises(ValueError, match="has 0 parameters"):
        param_groups(nn.ReLU(), weight_decay=0.1)


OPTIONS = {
    "weight_decay": 0.1, "lr": 1.0, "layer_decay": 0.5, "no_decay": ["token"],
    "rules": [{"rule": "momentum", "where": "blocks.*.mlp", "lr": 2.0}],
}  # fmt: skip


def compiled(model):
    for i, block in enumerate(model.blocks):
        model.blocks[i] = torch.compile(block)
    return torch.compile(model)


def in_place(model):
    model.compile()
    return model


def checkpointed(model):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    for i, block in enumerate(model.blocks):
        model.blocks[i] = checkpoint_wrapper(block)
    return model


def sharded(model):
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


WRAPPERS = {
    "compile": compiled,
    "compile in place": in_place,
    "DataParallel": nn.DataParallel,
    "DDP": nn.parallel.DistributedDataParallel,
    "compile of DDP": lambda m: torch.compile(nn.parallel.DistributedDataParallel(compiled(m))),
    "activation checkpoints": checkpointed,
    "fully_shard": sharded,
}


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:torch")
def test_wrappers_change_neither_names_nor_order(wrap):
    model = wrap(Transformer())
    groups = param_groups(model, **OPTIONS)
    assert shape(groups) == shape(param_groups(Transformer(), **OPTIONS))
    trained = {id(t) for g in groups for _, t in g["params"]}
    assert trained == {id(p) for p in model.parameters()}


def test_a_module_that_is_called_module_keeps_its_name():
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    assert names(param_groups(model, weight_decay=0.1)) == {"module.weight", "module.bias"}


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore")  # torch deprecates the wrapper
def test_flattening_is_refused():
    from torch.distributed.fsdp import FullyShardedDataParallel

    flat = FullyShardedDataParallel(
        nn.Linear(2, 2), use_orig_params=True, device_id=torch.device("cpu")
    )
    with pytest.raises(ValueError, match=r"flattens parameters.*fully_shard"):
        param_groups(flat, weight_decay=0.1)


# layers


def rates(model, **options):
    groups = param_groups(model, weight_decay=0.1, lr=1.0, layer_decay=0.5, **options)
    return {n: g["lr"] for g in groups for n, _ in g["params"]}


def test_layer_decay_finds_the_blocks():
    found = rates(Transformer(depth=2))
    assert {n: r for n, r in found.items() if n.endswith("0.weight") or "." not in n} == {
        "token": 0.125, "temperature": 0.125,
        "blocks.0.mlp.0.weight": 0.25, "blocks.1.mlp.0.weight": 0.5,
    }  # fmt: skip
    assert found["embedding.weight"] == 0.125  # tied to the head, by its first name
    assert found["norm.weight"] == 1.0
    assert rates(Transformer(depth=2, tied=False))["head.weight"] == 1.0


def test_single_layers_are_layers_where_no_stack_has_blocks():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten(),
        nn.Linear(2, 2),
    )  # fmt: skip
    found = rates(model)
    assert {n: r for n, r in found.items() if "weight" in n} == {
        "0.weight": 0.25, "1.weight": 0.25, "3.weight": 0.5, "5.weight": 1.0,
    }  # fmt: skip


def test_stages_of_blocks_and_what_stands_between_them():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.inner = nn.Conv2d(2, 2, 1), nn.Sequential(nn.Conv2d(2, 2, 1))

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
            self.stages = nn.Sequential(
                nn.Sequential(Residual(), Residual()), nn.Sequential(Residual())
            )
            self.between = nn.Conv2d(2, 2, 1)
            self.last = nn.ModuleList([Residual()])
            self.late = nn.Embedding(2, 2)
            self.heads = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    found = {n: r for n, r in rates(ResNet()).items() if n.endswith("weight")}
    assert found == {
        "stem.0.weight": 2**-5, "stem.1.weight": 2**-5, "late.weight": 2**-5,
        "stages.0.0.conv.weight": 2**-4, "stages.0.0.inner.0.weight": 2**-4,
        "stages.0.1.conv.weight": 2**-3, "stages.0.1.inner.0.weight": 2**-3,
        "stages.1.0.conv.weight": 2**-2, "stages.1.0.inner.0.weight": 2**-2,
        "between.weight": 2**-2, "last.0.conv.weight": 0.5, "last.0.inner.0.weight": 0.5,
        "heads.0.weight": 1.0, "heads.1.weight": 1.0,
    }  # fmt: skip


def test_a_frozen_stem_does_not_move_the_layers():
    model = Transformer(depth=2)
    before = rates(model)
    model.blocks[0].requires_grad_(False)
    model.token.requires_grad_(False)
    after = rates(model)
    assert after == {n: before[n] for n in after}


def test_layers_by_hand():
    layers = [("token", "embedding", "temperature"), nn.TransformerDecoder, Block, ("norm", "head")]
    found = rates(Transformer(), layers=[layers[0], "blocks.0", "blocks.[12]", layers[3]])
    assert (found["token"], found["blocks.0.gain"]) == (0.125, 0.25)
    assert (found["blocks.1.gain"], found["blocks.2.gain"], found["norm.bias"]) == (0.5, 0.5, 1.0)
    assert rates(Transformer(), layers=[layers[0], Block, layers[3]])["blocks.2.gain"] == 0.5
    with pytest.raises(ValueError, match=r"33 parameters are in no layer \('blocks\.0\.gain', "):
        rates(Transformer(), layers=[layers[0], layers[3]])
    overlap = r"'blocks\.0\.gain' is in layers\[0\] \('blocks'\) and in layers\[2\]"
    with pytest.raises(ValueError, match=overlap):
        rates(Transformer(), layers=["blocks", layers[0], "blocks.0", layers[3]])


def test_what_layer_decay_needs():
    model = Transformer()
    for wrong in (0, -1, 1.5, float("nan"), "0.5", True):
        with pytest.raises(ValueError, match=r"layer_decay=.*expected a number in \(0, 1\]"):
            param_groups(model, weight_decay=0.1, lr=1.0, layer_decay=wrong)
    with pytest.raises(ValueError, match="param_groups has no lr for the topmost layer"):
        param_groups(model, weight_decay=0.1, layer_decay=0.5)
    with pytest.raises(ValueError, match=r"the entry rules\[0\] has no lr"):
        param_groups(model, weight_decay=0.1, lr=1.0, layer_decay=0.5, rules={"sgd": "head.*"})
    with pytest.raises(ValueError, match="without layer_decay"):
        param_groups(model, weight_decay=0.1, lr=1.0, layers=["blocks"])
    with pytest.raises(ValueError, match="no ModuleList or Sequential whose blocks"):
        rates(Block().attention)
    with pytest.raises(TypeError, match=r"expected a list of layers: \['blocks'\]"):
        rates(model, layers="blocks")
    assert set(rates(model, **{}).values()) == {1.0, 0.5, 0.25, 0.125, 0.0625}


# rules


def test_the_first_match_wins_and_the_rest_is_the_optimizers():
    rules = [
        {"where": nn.Embedding, "lr": 0.5, "weight_decay": 0.2},
        {"rule": "momentum", "where": lambda n, p: p.dim() == 2, "lr": 0.2, "momentum": 0.8},
        {"rule": steepest.rules["sgd"], "where": "blocks.*.gain", "weight_decay": 0.3},
    ]
    groups = param_groups(Transformer(), weight_decay=0.1, lr=1.0, rules=rules)
    assert [(g["name"], g.get("rule"), g.get("lr"), g["weight_decay"]) for g in groups] == [
        ("decay", None, 1.0, 0.1), ("no decay", None, 1.0, 0.0),
        ("rules[0] decay", None, 0.5, 0.2),
        ("momentum decay", "momentum", 0.2, 0.1),
        ("sgd no decay", "sgd", None, 0.0),
    ]  # fmt: skip
    assert names(groups, rule="momentum") == {
        n for n, p in Transformer().named_parameters() if p.dim() == 2 and n != "embedding.weight"
    }
    assert all(g["momentum"] == 0.8 for g in groups if g.get("rule") == "momentum")
    short = param_groups(Transformer(), weight_decay=0.1, rules={"AdaBelief": "head"})
    assert names(short, rule="AdaBelief") == {"embedding.weight"}  # by its second name


def test_two_entries_with_one_rule_have_two_names():
    rules = [{"rule": "sgd", "where": "blocks.0"}, {"rule": "sgd", "where": "blocks.1"}]
    groups = param_groups(Transformer(), weight_decay=0.1, rules=rules)
    assert len({g["name"] for g in groups}) == len(groups) == 6


def test_wrong_rules_are_refused():
    model = Transformer()
    with pytest.raises(ValueError, match="did you mean 'momentum'"):
        param_groups(model, weight_decay=0.1, rules={"momentun": "head"})
    for entry in ({"rule": "sgd"}, "sgd", {"where": "head", "params": []}):
        with pytest.raises(TypeError, match=r"rules\[0\] is .*expected a dict like"):
            param_groups(model, weight_decay=0.1, rules=[entry])
    hidden = [{"where": "blocks"}, {"rule": "sgd", "where": "blocks.0"}]
    with pytest.raises(ValueError, match=r"rules\[1\] \('blocks\.0'\) got no parameter"):
        param_groups(model, weight_decay=0.1, rules=hidden)
    for wrong in (3, None, int, [None]):
        with pytest.raises(TypeError, match="expected a pattern of names, a type of module, or"):
            param_groups(model, weight_decay=0.1, no_decay=wrong)


@pytest.mark.parametrize("wrong", [-0.1, float("inf"), float("nan"), "0.1", None, True])
def test_wrong_numbers_and_models_are_refused(wrong):
    with pytest.raises(
        ValueError, match=r"weight_decay=.* was given, expected a number in \[0, inf"
    ):
        param_groups(nn.Linear(2, 2), weight_decay=wrong)
    if wrong is not None:
        with pytest.raises(ValueError, match=r"lr=.* was given, expected a number in \[0, inf"):
            param_groups(nn.Linear(2, 2), weight_decay=0.1, lr=wrong)
    with pytest.raises(TypeError, match="model is a list, expected a torch"):
        param_groups(list(nn.Linear(2, 2).parameters()), weight_decay=0.1)


# what comes out


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, steepest.AdamW])
def test_an_optimizer_takes_them_with_names_and_steps(kind):
    model = Transformer()
    groups = param_groups(model, weight_decay=0.1)
    before = str(groups)
    optimizer = kind(groups, lr=0.1)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    expected = shape(param_groups(model, weight_decay=0.1))
    assert [g["param_names"] for g in optimizer.param_groups] == [g["params"] for g in expected]
    assert str(groups) == before
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, start[n])}
    assert moved == names(param_groups(model, weight_decay=0.1), weight_decay=0.1) - {"token"}
    kind(groups, lr=0.1)  # torch has changed the entries, and they still serve
    assert optimizer.state_dict()["param_groups"][0]["name"] == "decay"


def test_the_table():
    rules = [{"rule": "momentum", "where": "blocks.0.mlp", "lr": 0.5}]
    model = Transformer(width=120)
    model.temperature.requires_grad_(False)
    groups = param_groups(model, weight_decay=0.1, lr=1e-3, rules=rules)
    assert str(groups) == repr(groups) == groups.table()
    lines = str(groups).splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert lines[0].split() == ["group", "lr", "weight_decay", "rule", "tensors", "elements"]
    decaying = names(groups, name="decay")
    count = sum(p.numel() for n, p in model.named_parameters() if n in decaying)
    assert count >= 1000
    assert lines[1].split() == ["decay", "0.001", "0.1", str(len(decaying)), f"{count:,}"]
    assert lines[2].startswith("    weight (10), 3-d (1), embedding (1): token, embedding.weight, ")
    assert lines[2].endswith(" ...")
    assert "left out" in lines[-2]
    assert lines[-1] == "    requires_grad=False: temperature"
    assert (
        len({line.index(x) + len(x) for line, x in zip(lines[:2], ("lr", "0.001"), strict=True)})
        == 1
    )
    groups[0]["lr"] = 7.0  # what an optimizer would be given
    assert " 7 " in str(groups).splitlines()[1]


def test_a_long_name_does_not_break_the_table():
    model = nn.ModuleDict({"x" * 90: nn.ModuleList([Block(), Block()])})
    many = [{"where": "*.bias", "lr": 1.0, **{f"option_{i}": i for i in range(12)}}]
    groups = param_groups(model, weight_decay=0.1, lr=1.0, layer_decay=0.5, rules=many)
    assert len(groups[0]["name"]) > 90
    assert all(len(line) <= 100 for line in str(groups).splitlines())


def test_they_can_be_copied_and_pickled():
    groups = param_groups(Transformer(), weight_decay=0.1)
    for other in (copy.deepcopy(groups), pickle.loads(pickle.dumps(groups))):
        assert isinstance(other, ParamGroups)
        assert str(other) == str(groups)
        assert other[0]["params"][0][1] is not groups[0]["params"][0][1]


LEAVES = st.sampled_from(
    [
        lambda: nn.Linear(2, 2), lambda: nn.Linear(2, 2, bias=False), lambda: nn.LayerNorm((2, 2)),
        lambda: nn.Embedding(2, 2), lambda: nn.ReLU(), lambda: nn.LSTM(2, 2), lambda: MyNorm(),
        lambda: nn.BatchNorm1d(2), lambda: Block(4), lambda: nn.Linear(2, 2).requires_grad_(False),
        lambda: nn.ParameterList([torch.ones(2), torch.ones(2, 2), torch.ones(())]),
        lambda: nn.ParameterDict({"bias": torch.ones(2, 2), "a": torch.ones(2)}),
        lambda: parametrizations.weight_norm(nn.Linear(2, 2)),
    ]
)  # fmt: skip
TREES = st.recursive(
    LEAVES.map(lambda make: make()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(nn.ModuleList),
        st.lists(inner, max_size=4).map(lambda some: nn.Sequential(*some)),
        st.dictionaries(st.sampled_from("abcd"), inner, max_size=4).map(nn.ModuleDict),
        inner.map(lambda m: nn.ModuleList([m, m])),  # one module in two places
        inner.map(nn.DataParallel),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(TREES, st.booleans(), st.sampled_from([None, 0.5]), st.booleans())
def test_every_trainable_parameter_stands_exactly_once(tree, embeddings, layer_decay, routed):
    model = nn.Sequential(tree, nn.Linear(2, 2))
    rules = [{"rule": "sgd", "where": [nn.Linear, "1"], "lr": 1.0}] if routed else []
    groups = param_groups(
        model, weight_decay=0.1, lr=1.0, decay_embeddings=embeddings, layer_decay=layer_decay,
        rules=rules,
    )  # fmt: skip
    found = [id(p) for g in groups for _, p in g["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for _, p in groups.frozen} == {
        id(p) for p in model.parameters() if not p.requires_grad
    }
    all_names = [n for g in groups for n, _ in g["params"]]
    assert len(all_names) == len(set(all_names))
    assert len({g["name"] for g in groups}) == len(groups)
    order = [n.replace("module.", "") for n, p in model.named_parameters() if p.requires_grad]
    assert set(all_names) == set(order)
    for group in groups:
        places = [order.index(n) for n, _ in group["params"]]
        assert places == sorted(places)
    torch.optim.AdamW(groups)
    assert all(len(line) <= 100 for line in str(groups).splitlines())


def test_a_frozen_top_leaves_the_rate_to_the_topmost_trained_layer():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    groups = param_groups(model, weight_decay=0.0, lr=1.0, layer_decay=0.5)
    assert {g["lr"] for g in groups} == {1.0, 0.5}


def test_a_tensor_rate_stays_the_callers_own():
    rate = torch.tensor(0.1)
    groups = param_groups(nn.Linear(2, 2), weight_decay=0.1, lr=rate)
    assert all(g["lr"] is rate for g in groups)
