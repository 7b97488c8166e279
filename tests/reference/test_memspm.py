"""MemSPM against the numbers of DCC's, MemAE's, OVANet's and others' code; what the kinds hold is in their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.domain_classes import published
from datamodules.domain_splits import Setting, split_classes
from tests.reference.cases import Case, case_names, load_case
from vision.memspm.addressing import dense, gather, shrink
from vision.memspm.baselines import one_vs_all_entropy, one_vs_all_losses
from vision.memspm.consensus import dropping, match, settled
from vision.memspm.discrepancy import contrastive_domain_discrepancy
from vision.memspm.open_set import class_recalls, h3_score, open_set_scores, private_nmi
from vision.memspm.regulariser import ClusterMemory, ramp
from vision.schedule import InverseDecay


def given(case: Case) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.asarray(array)) for key, array in case.arrays.items()}


def absolute(case: Case, tolerance: float) -> dict[str, float]:
    """``Case.compare``'s exceptions, which it multiplies with the largest magnitude."""
    return {key: tolerance / max(float(np.abs(array).max()), 1e-30) for key, array in case.arrays.items()}


# -------------------------------------------------------------------------------------------------------- addressing
def check_addressing(case: Case) -> None:
    config, arrays = case.info["config"], given(case)
    features, memory = arrays["z"], arrays["memory"]
    mode, top_k, tau = config["threshold_mode"], config["K"], config["tau"]
    assert mode in ("paper", "exact"), f"{case.name}: no threshold '{mode}'"
    found = dense(features, memory, top_k, tau, mode)
    names = dict(zip(("cos", "w", "s", "wi", "lam", "w_hat", "z_hat"), found, strict=True))
    case.compare({"z": features, "memory": memory, **names}, exceptions=absolute(case, 1e-6))
    assert (found.shrunk > 0).sum(dim=1).tolist() == [top_k - (mode == "paper")] * len(features)
    if mode == "paper":
        return
    # The rows that are looked up are those that survive, with their weights.
    quick = gather(features, memory, top_k, tau)
    items, subs = quick.rows // memory.shape[1], quick.rows % memory.shape[1]
    weights = torch.zeros(len(features), len(memory)).scatter(1, items, quick.weights)
    best = arrays["s"].scatter(1, items, subs)
    results = {**arrays, "w_hat": weights, "s": best, "z_hat": quick.embedding}
    case.compare(results, exceptions=absolute(case, 1e-6))


def check_addressing_flat(case: Case) -> None:
    config, arrays = case.info["config"], given(case)
    features, memory = arrays["z"], arrays["memory"]
    found = gather(features, memory, config["K"], config["tau"], one_per_item=False)
    over_all = dense(features, memory, config["K"], config["tau"])
    results = {
        "z": features,
        "memory": memory,
        "cos": over_all.similarity.flatten(1),
        "w": over_all.weights.flatten(1),
        "idx": found.rows,
        "w_hat": found.weights,
        "z_hat": found.embedding,
    }
    case.compare(results, exceptions=absolute(case, 1e-6))


def check_memae_unit(case: Case) -> None:
    arrays, threshold = given(case), case.info["config"]["shrink_thres"]
    results: dict[str, Tensor] = {key: arrays[key] for key in ("x", "weight", "shrink_in", "shrink_grad_in")}
    for ending, number in (("", threshold), ("_noshrink", 0.0)):
        found = dense(arrays["x"], arrays["weight"][:, None], 1, 1.0, number, similarity="dot")
        results |= {f"att{ending}": found.shrunk, f"output{ending}": found.embedding}
    results["shrink_out"] = shrink(arrays["shrink_in"], threshold)
    weights = arrays["shrink_grad_in"].clone().requires_grad_()
    (results["shrink_grad"],) = torch.autograd.grad(shrink(weights, threshold).sum(), weights)
    case.compare(results, exceptions=absolute(case, 1e-6))


# ----------------------------------------------------------------------------------------------------- DCC's losses
def check_cdd(case: Case) -> None:
    config, arrays = case.info["config"], given(case)
    slots, classes = len(config["nums_S"]), config["num_classes"]
    labels = [torch.arange(slots).repeat_interleave(torch.tensor(config[of])) for of in ("nums_S", "nums_T")]
    source, target = arrays["source"].requires_grad_(), arrays["target"].requires_grad_()
    found = contrastive_domain_discrepancy(source, labels[0], target, labels[1], slots)
    results: dict[str, Any] = {"source": source, "target": target}
    results |= {f"{name}_num_classes{slots}": part for name, part in zip(("cdd", "intra", "inter"), found, strict=True)}
    # Where the official trainer's classes are fewer than its slots, it divides by their number.
    intra, inter = found.intra * slots / classes, found.inter
    if classes > 1:
        inter = found.inter * slots * (slots - 1) / (classes * (classes - 1))
        total = intra - inter
    else:
        total = intra
    if slots == classes:
        torch.testing.assert_close(total, found.total)
    results |= {"cdd": total, "intra": intra, "inter": inter}
    results["grad_source"], results["grad_target"] = torch.autograd.grad(total, (source, target))
    missing = {key for key in ("inter",) if slots == 1 and not np.isfinite(case.arrays.get(key, 0.0))}
    assert not missing or found.inter == 0  # a single class has no others to keep apart from; the official loss: None
    kept = {key: array for key, array in case.arrays.items() if key not in missing}
    Case(case.name, case.kind, case.info, kept).compare(results)


def check_consensus(case: Case) -> None:
    arrays = given(case)
    inputs = ("s_feats", "s_labels", "s_centers", "t_feats", "t_codes", "t_centers")
    found = match(*(arrays[key] for key in inputs))
    pair_scores = (found.source_share + found.target_share) / 2
    by_class = torch.zeros(len(arrays["s_centers"])).index_add(0, found.pairs[:, 0], pair_scores)
    results = {
        **{key: arrays[key] for key in inputs},
        "mean_score": np.array(found.score),
        "pairs": found.pairs,
        "pair_scores": pair_scores,
        "score_vector": by_class,
        "s2t": found.source_share,
        "t2s": found.target_share,
    }
    case.compare(results)


def check_prototype_loss(case: Case) -> None:
    arrays = given(case)
    clusters = ClusterMemory(arrays["init_centers"].shape[1])
    clusters.set(arrays["init_centers"])
    inputs = ("init_centers", "feat1", "label1", "feat2", "label2", "source_private_centers")
    results: dict[str, Tensor] = {key: arrays[key] for key in inputs}
    results["memory0"] = clusters.centers.clone()
    joint = ClusterMemory(arrays["init_centers"].shape[1])
    joint.set(arrays["init_centers"])
    results["loss1_joint"] = joint(arrays["feat1"], arrays["label1"], arrays["source_private_centers"])
    for step in ("1", "2"):
        features, codes = arrays[f"feat{step}"].clone().requires_grad_(), arrays[f"label{step}"]
        before = clusters.centers.clone()
        loss = clusters(features, codes)
        results |= {f"loss{step}": loss, f"memory{step}": clusters.centers.clone()}
        (results[f"grad_feat{step}"],) = torch.autograd.grad(loss, features)
        absent = [cluster for cluster in range(len(clusters)) if cluster not in codes]
        assert torch.equal(before[absent], clusters.centers[absent])
    case.compare(results)


# ------------------------------------------------------------------------------------------------------------- rules
def _learning_rate(step: int) -> float:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = InverseDecay(optimizer)
    schedule.bind(epochs=100, steps_per_epoch=300)
    schedule.last_epoch = step
    return schedule.get_lr()[0]


def check_rules(case: Case) -> None:
    rules = {
        "detect_continuous_drop(n=4,con=True)": lambda scores: dropping(scores, 4, consecutive=True),
        "detect_continuous_drop(n=4,con=False)": lambda scores: dropping(scores, 4, consecutive=False),
        "fix_k(n=2)": lambda found: settled(found, 2),
    }
    values = {
        "inverse_decay_lr": ("values_lr0_1", _learning_rate),
        "regulariser_ramp": ("values", ramp),
    }
    unknown = case.info.keys() - rules.keys() - values.keys() - {"kind", "source", "notes"}
    assert not unknown, f"{case.name} holds rules that are not checked: {sorted(unknown)}"
    checked = 0
    for name, rule in rules.items():
        for given_list, wanted in case.info.get(name, []):
            assert rule(given_list) is wanted, f"{name} of {given_list}"
            checked += 1
    for name, (key, function) in values.items():
        for step, wanted in case.info.get(name, {}).get(key, {}).items():
            assert function(int(step)) == pytest.approx(wanted, rel=1e-9), f"{name} at {step}"
            checked += 1
    assert checked


# ---------------------------------------------------------------------------------------------------------- measures
def check_metrics(case: Case) -> None:
    made = case.info["case"]
    labels, answers = torch.tensor(made["label"]), torch.tensor(made["pred"])
    classes = made["n_source_classes"]
    scores = open_set_scores(labels, answers, classes)
    # Features that fall apart into the clusters of the case.
    codes = torch.tensor(made["private_cluster"])
    features = torch.zeros(len(labels), int(codes.max()) + 1)
    features[labels >= classes] = F.one_hot(codes).float()
    nmi = private_nmi(labels, features, classes)
    common, unknown = scores["common"], scores["unknown"]
    assert None not in (scores["h"], common, unknown, nmi)
    h3, tiny = h3_score(scores, nmi), 1e-5  # uniood adds it to what it divides by
    found = {
        "uniot": {
            "common_acc": scores["common"],
            "unknown_acc": scores["unknown"],
            "overall": scores["average"],
            "h": scores["h"],
            "nmi": nmi,
            "h3": h3,
        },
        "uniood_percent": {
            "OA": scores["accuracy"],
            "AA": scores["average"],
            "OOD": scores["unknown"],
            "NMI": nmi,
            "H-score": scores["h"] * (common + unknown) / (common + unknown + tiny),
            "H3-score": h3_score({"common": common + tiny, "unknown": unknown + tiny}, nmi + tiny),
            "Recall-all": list(class_recalls(labels, answers, classes).values()),
        },
        "ovanet_h": scores["h"],
        "dcc_h_micro": scores["h_micro"],
        "dcc_common_micro": scores["common_micro"],
    }
    inputs = {"label", "pred", "private_cluster", "n_source_classes"}
    unchecked = made.keys() - inputs - found.keys()
    assert not unchecked, f"{case.name} holds measures that are not checked: {sorted(unchecked)}"
    for name, wanted in made.items():
        if name in inputs:
            continue
        measure, scale = found[name], 100 if name.endswith("percent") else 1
        if not isinstance(wanted, Mapping):
            wanted, measure = {"": wanted}, {"": measure}
        assert wanted.keys() <= measure.keys(), f"{case.name}: unknown among {sorted(wanted)}"
        for key, value in wanted.items():
            assert scale * np.array(measure[key]) == pytest.approx(np.array(value), rel=1e-6), f"{name}: {key}"


def check_ovanet(case: Case) -> None:
    arrays = given(case)
    found = one_vs_all_losses(arrays["logits"], arrays["label"])
    results = {**arrays, "pos": found.positive, "neg": found.negative}
    case.compare({**results, "open_entropy": one_vs_all_entropy(arrays["logits"])})


# ------------------------------------------------------------------------------------------------------- class lists
def check_class_lists(case: Case) -> None:
    orders = {key: value for key, value in case.info.items() if isinstance(value, list) and key != "source"}
    unknown = (
        case.info.keys()
        - orders.keys()
        - {
            *("kind", "source", "rule", "splits_common_sourceprivate_targetprivate"),
            *("osda_office31_note", "sizes", "sizes_note"),  # words, and sizes of data that is not here
        }
    )
    assert not unknown, f"{case.name} holds what is not checked: {sorted(unknown)}"
    for name, order in orders.items():
        assert published()["orders"].get(name) == order, name
    settings = {"OPDA": "unida", "OSDA": "osda", "PDA": "pda", "closed": "closed"}
    assert set(settings.values()) == set(get_args(Setting))
    splits = case.info["splits_common_sourceprivate_targetprivate"]
    assert published()["splits"].keys() == splits.keys()
    for data, by_setting in splits.items():
        names = published()["orders"][published()["default_orders"][data]]
        everything = np.arange(len(names))
        assert published()["splits"][data].keys() == {settings[setting] for setting in by_setting}
        for setting, (common, of_source, of_target) in by_setting.items():
            found = split_classes(data, settings[setting], names, everything, [everything])
            assert found.common == list(range(common)), (data, setting)
            assert found.source_private == list(range(common, common + of_source)), (data, setting)
            # Without a gap but in Office-31's open set, the last classes are the target's own either way.
            assert found.target_private == list(range(len(names) - of_target, len(names))), (data, setting)
            gap = len(names) - common - of_source - of_target
            assert gap == (10 if (data, setting) == ("office31", "OSDA") else 0), (data, setting)


CHECKS: dict[str, Callable[[Case], None]] = {
    "addressing": check_addressing,
    "addressing_flat": check_addressing_flat,
    "memae_unit": check_memae_unit,
    "cdd": check_cdd,
    "dcc_consensus": check_consensus,
    "dcc_prototype_loss": check_prototype_loss,
    "dcc_rules": check_rules,
    "metrics_tiny": check_metrics,
    "ovanet_losses": check_ovanet,
    "class_lists": check_class_lists,
}


@pytest.mark.parametrize("name", case_names("memspm"))
def test_case(name: str) -> None:
    case = load_case("memspm", name)
    assert case.kind in CHECKS, f"{name} is of a kind that is not checked: {case.kind}"
    CHECKS[case.kind](case)
