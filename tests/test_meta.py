"""Episodic training: every algorithm learns, is resumed, adapted, saved; its steps are those of its paper."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC
from small_models import NAMES, clips_for, small_model
from torch import nn
from torch.nn import functional as F

import fsmer
from fsmer.episodic import DrawnTasks
from fsmer.errors import (
    DataError,
    FsmerError,
    OutputError,
    ProtocolError,
    SpecMismatchError,
    SupportError,
    UnknownNameError,
    WeightsError,
)
from fsmer.kernels.differentiation import second_order
from fsmer.meta import ClipTasks, UnitSetTasks, load_algorithm
from fsmer.meta.algorithm import Learner, query_loss
from fsmer.training.inner_loop import HEAD, adaptable, head_steps, inner_loop
from fsmer.training.ridge import ridge_weights
from fsmer.training.support_vectors import svm_weights
from fsmer.transfer.source_model import MethodError

ALGORITHMS = fsmer.list_algorithms()
INNER = ["fomaml", "maml", "meta_sgd", "reptile"]
QUICK = {"reptile": {"adaptation_steps": 5, "inner_steps": 3}, "maml": {"inner_steps": 2}, "fomaml": {"inner_steps": 2}}
# A few steps are to show that they lead somewhere.
LEARNS = {
    "reptile": {"inner_steps": 4, "adaptation_steps": 6},
    "maml": {"inner_steps": 2},
    "fomaml": {"inner_steps": 2},
}
# Second derivatives of the largest network take long.
SIZED = [pytest.param(name, marks=pytest.mark.slow if name == "r3d34_attribute" else ()) for name in NAMES]
OUTER = {"reptile": 0.5, "maml": 1e-3, "fomaml": 1e-3, "meta_sgd": 1e-3}


@pytest.fixture(scope="module")
def clips():
    return fsmer.synthetic_clips("lab", 120, seed=1)


@pytest.fixture(scope="module")
def protocol():
    return fsmer.load_protocol("kshot", way=3, shot=2, query=3)


def trained(name, clips, protocol, model="ststnet", **options):
    rate = 0.5 if name == "reptile" else 1e-3
    options = {"steps": 4, "batch": 2, "learning_rate": rate, "clips": clips, **QUICK.get(name, {}), **options}
    return fsmer.meta_train(model, protocol, name, **options)


def weights_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def learner_of(algorithm, tasks, model="ststnet"):
    torch.manual_seed(0)
    backbone = fsmer.create_model(model).eval()
    learned = nn.ParameterDict(
        {key: nn.Parameter(value) for key, value in algorithm.begin(backbone, tasks.way).items()}
    )
    return Learner(backbone, learned)


@pytest.mark.parametrize("name", ALGORITHMS)
class TestEveryAlgorithm:
    @pytest.mark.filterwarnings("ignore:'ststnet' starts from fresh weights")
    def test_answers_better_on_new_people_than_before(self, name, tmp_path):
        clips, others = fsmer.synthetic_clips("lab", 200, seed=1), fsmer.synthetic_clips("lab", 150, seed=2)
        protocol = fsmer.load_protocol("kshot", shot=5, query=5)
        judged = {"validation": (protocol, others), "validation_tasks": 30, "validate_every": 100}
        right = []
        for steps, rate in ((1, 1e-9), (60, OUTER.get(name, 3e-3))):
            options = {**LEARNS.get(name, {}), **judged, "steps": steps, "learning_rate": rate, "batch": 4}
            model = trained(name, clips, protocol, **options, out=tmp_path / "weights", resume=False)
            history = json.loads((tmp_path / "weights.history.json").read_text())["history"]
            right.append(history[-1]["validation_accuracy"])
        assert right[1] > right[0]
        report = fsmer.evaluate(protocol.with_params(episodes=20), model, clips=others, cache=False)
        # A constant answer has 1/6, a drawn one 1/3.
        assert report.uf1 > 0.45

    def test_is_the_default_of_adapt_and_evaluate_and_travels_with_the_weights(self, name, clips, protocol, tmp_path):
        model = trained(name, clips, protocol, out=tmp_path / "weights")
        again = fsmer.load_model(tmp_path / "weights")
        assert same(weights_of(model), weights_of(again))
        assert again.adaptation.algorithm == name
        support, queries = fsmer.synthetic_clips("clinic", 9, seed=3), fsmer.synthetic_clips("clinic", 12, seed=4)
        recognizer = fsmer.adapt(again, support)
        assert recognizer.method.name == model.adaptation.method
        wanted = recognizer.predict_proba(queries)
        np.testing.assert_array_equal(fsmer.adapt(model, support).predict_proba(queries), wanted)
        loaded = fsmer.Recognizer.load(recognizer.save(tmp_path / "recognizer"))
        np.testing.assert_allclose(loaded.predict_proba(queries), wanted, atol=1e-6)
        assert loaded.update(fsmer.synthetic_clips("clinic", 6, seed=5)).support_size == 15
        assert fsmer.adapt(again, support, "cosine").method.name == "cosine"
        report = fsmer.evaluate(protocol.with_params(episodes=2), again, clips=clips)
        assert report.method["name"] == model.adaptation.method

    def test_one_episode_is_answered_as_by_adapt(self, name, clips, protocol):
        model = trained(name, clips, protocol)
        report = fsmer.evaluate(protocol.with_params(episodes=3), model, clips=clips, cache=False)
        for number, episode in enumerate(protocol.with_params(episodes=3).split(clips)):
            recognizer = fsmer.adapt(model, clips[episode.support], classes=episode.classes)
            rows = report.predictions[report.predictions["episode"] == number]
            told = dict(zip(rows["clip"], rows["predicted"], strict=True))
            ids = clips.ids[episode.query]
            assert [told[one] for one in ids] == recognizer.predict(clips[episode.query]).tolist()

    def test_goes_on_from_a_checkpoint_to_the_same_numbers(self, name, clips, protocol, tmp_path):
        whole = trained(name, clips, protocol, steps=6)

        def stop(done, total):
            if done == 4:
                raise KeyboardInterrupt

        options = {"steps": 6, "out": tmp_path / "weights", "checkpoint_every": 2}
        with pytest.raises(KeyboardInterrupt):
            trained(name, clips, protocol, progress=stop, **options)
        assert not list((tmp_path / "weights").glob("*"))
        seen = []
        resumed = trained(name, clips, protocol, progress=lambda done, total: seen.append(done), **options)
        assert seen[0] > 1
        assert same(weights_of(whole), weights_of(resumed))
        assert not list(tmp_path.glob("*.training"))

    def test_does_not_change_the_given_backbone(self, name, clips, protocol):
        model = fsmer.create_model("ststnet")
        before = weights_of(model)
        made = trained(name, clips, protocol, model=model)
        assert same(before, weights_of(model))
        assert model.adaptation is None
        assert not same(before, {key: value for key, value in weights_of(made).items() if key in before})

    def test_leaves_lower_layers_as_they_are(self, name):
        clips = fsmer.synthetic_clips("lab", 45, seed=1)
        protocol = fsmer.load_protocol("kshot", shot=1, query=1)
        model = fsmer.load_model("facs-flow")
        made = trained(name, clips, protocol, model=model, steps=1)
        held = {id(value) for layer in model.lower_layers() for value in layer.parameters()}
        lower = {key for key, value in model.named_parameters() if id(value) in held}
        changed = {key for key, value in model.named_parameters() if not torch.equal(value, made.get_parameter(key))}
        assert lower
        assert changed
        assert not lower & changed
        assert all(value.requires_grad for value in made.parameters())


class TestInnerLoop:
    def naive(self, backbone, weight, bias, support, codes, query, asked, steps, rate, second_order):
        """MAML as its paper writes it, by plain autograd on a copy of every parameter; gradients of the query loss."""
        free = {key: value for key, value in backbone.named_parameters() if value.requires_grad}
        names = list(free)
        first = [value.detach().clone().requires_grad_() for value in (*free.values(), weight, bias)]
        current = list(first)
        for _ in range(steps):
            logits = torch.func.functional_call(backbone, dict(zip(names, current, strict=False)), (support,))
            loss = F.cross_entropy(F.linear(logits, current[-2], current[-1]), codes)
            gradients = torch.autograd.grad(
                loss, current, create_graph=second_order, allow_unused=True, materialize_grads=True
            )
            current = [value - rate * one for value, one in zip(current, gradients, strict=True)]
        logits = torch.func.functional_call(backbone, dict(zip(names, current, strict=False)), (query,))
        loss = F.cross_entropy(F.linear(logits, current[-2], current[-1]), asked)
        return loss, torch.autograd.grad(loss, first, allow_unused=True, materialize_grads=True), current

    @pytest.mark.parametrize("name", ["maml", "fomaml"])
    def test_step_is_the_gradient_of_the_query_loss_after_the_inner_steps(self, name, clips, protocol):
        algorithm = load_algorithm(name, inner_steps=3, inner_rate=1e-4, batch_norm="inherited")
        backbone = fsmer.create_model("ststnet")
        tasks = ClipTasks(protocol, clips, backbone).batch(0, 1)
        learner = learner_of(algorithm, tasks)
        figures = algorithm.step(learner, tasks)
        weight, bias = learner.learned["weight"], learner.learned["bias"]
        loss, gradients, _ = self.naive(
            learner.backbone, weight, bias, tasks.support[0], tasks.support_codes[0], tasks.query[0],
            tasks.query_codes[0], 3, 1e-4, name == "maml",
        )  # fmt: skip
        assert figures["loss"] == pytest.approx(loss.item(), rel=1e-5)
        found = [*(value.grad for value in learner.backbone.parameters()), weight.grad, bias.grad]
        for one, other in zip(found, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-5 * float(other.abs().max()) + 1e-8)

    def test_first_and_second_order_differ(self, clips, protocol):
        found = []
        for name in ("maml", "fomaml"):
            algorithm = load_algorithm(name, inner_steps=2)
            learner = learner_of(algorithm, protocol_tasks := ClipTasks(protocol, clips, fsmer.create_model("ststnet")))
            algorithm.step(learner, protocol_tasks.batch(0, 1))
            found.append(learner.learned["weight"].grad)
        assert not torch.allclose(*found, rtol=1e-2)

    @pytest.mark.parametrize("model", SIZED)
    def test_second_order_step_of_every_backbone_is_that_of_plain_autograd(self, model):
        backbone = small_model(model)
        drawn = fsmer.load_protocol("kshot", way=3, shot=1, query=1)
        tasks = ClipTasks(drawn, clips_for(backbone), backbone).batch(0, 1)
        rate = 1e-6 if model == "ststnet" else 0.01
        algorithm = load_algorithm("maml", inner_steps=2, inner_rate=rate, batch_norm="inherited")
        begun = {key: nn.Parameter(value) for key, value in algorithm.begin(backbone, 3).items()}
        learner = Learner(backbone, nn.ParameterDict(begun))
        figures = algorithm.step(learner, tasks)
        one = tasks.mapped(lambda value: value[0])
        # Fast layers give no second derivatives to plain autograd.
        with second_order():
            loss, gradients, _ = self.naive(
                backbone, begun["weight"], begun["bias"], one.support, one.support_codes, one.query, one.query_codes,
                2, rate, True,
            )  # fmt: skip
        assert figures["loss"] == pytest.approx(loss.item(), rel=1e-4)
        largest = max(float(value.abs().max()) for value in gradients)
        free = [value for value in learner.backbone.parameters() if value.requires_grad]
        for value, wanted in zip((*free, *begun.values()), gradients, strict=True):
            found = torch.zeros_like(wanted) if value.grad is None else value.grad
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3 * largest)

    def test_learned_rates_of_meta_sgd_get_the_gradient_of_the_step(self, clips, protocol):
        algorithm = load_algorithm("meta_sgd", inner_rate=1e-4, batch_norm="inherited")
        tasks = ClipTasks(protocol, clips, fsmer.create_model("ststnet"))
        learner = learner_of(algorithm, tasks)
        batch = tasks.batch(0, 1)
        algorithm.step(learner, batch)
        name = "rate/head/bias"
        rate = learner.learned[name]
        moved = 1.0
        losses = []
        for sign in (1, -1):
            shifted = copy.deepcopy(learner)
            shifted.learned[name].data[0] += sign * moved
            losses.append(query_loss(algorithm.answers(shifted, batch, training=True), batch.query_codes).item())
        assert rate.grad[0].item() == pytest.approx((losses[0] - losses[1]) / (2 * moved), rel=0.02)

    def test_head_steps_are_the_inner_loop_of_a_frozen_network(self):
        torch.manual_seed(0)
        embeddings, codes = torch.randn(2, 6, 5), torch.tensor([[0, 0, 1, 1, 2, 2], [2, 1, 0, 0, -1, -1]])
        weight, bias = torch.randn(2, 3, 5), torch.randn(2, 3)
        members = F.one_hot(codes.clamp_min(0), 3).float().transpose(1, 2) * (codes >= 0)[:, None]
        found = head_steps(weight, bias, embeddings, members, 4, 0.3)
        for number in range(2):
            w, b = weight[number].clone().requires_grad_(), bias[number].clone().requires_grad_()
            for _ in range(4):
                loss = F.cross_entropy(F.linear(embeddings[number], w, b), codes[number], ignore_index=-1)
                dw, db = torch.autograd.grad(loss, (w, b))
                w, b = w - 0.3 * dw, b - 0.3 * db
            torch.testing.assert_close(found[0][number], w.detach(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found[1][number], b.detach(), rtol=1e-4, atol=1e-5)

    def test_statistics_of_the_support_normalise_queries(self, clips):
        backbone = fsmer.create_model("ststnet").eval()
        media = torch.from_numpy(clips.media()[:10])
        layer = next(one for one in backbone.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm))
        before = layer.running_mean.clone()
        weights = {**adaptable(backbone, upper=False)}
        weights |= dict(zip(HEAD, (torch.zeros(2, backbone.embed_dim), torch.zeros(2)), strict=True))
        weights = {name: value.detach().requires_grad_() for name, value in weights.items()}
        found = inner_loop(backbone, weights, media, torch.arange(10) % 2, steps=1, rates=0.0, statistics="task")
        assert torch.equal(layer.running_mean, before)
        assert not layer.training
        seen = {}
        handle = layer.register_forward_pre_hook(lambda module, given: seen.update(x=given[0]))
        with torch.no_grad():
            backbone(media)
        handle.remove()
        name = next(key for key in found.statistics if key.endswith("running_mean"))
        torch.testing.assert_close(found.statistics[name], seen["x"].mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)

    def test_reptile_moves_towards_the_adapted_weights(self, clips, protocol):
        algorithm = load_algorithm("reptile", inner_steps=2, batch_norm="inherited", inner_rate=1e-4)
        tasks = ClipTasks(protocol, clips, fsmer.create_model("ststnet")).batch(0, 2)
        learner = learner_of(algorithm, tasks)
        algorithm.step(learner, tasks)
        steps = []
        for number in range(2):
            media = torch.cat([tasks.support[number], tasks.query[number]])
            codes = torch.cat([tasks.support_codes[number], tasks.query_codes[number]])
            weight, bias = learner.learned["weight"], learner.learned["bias"]
            steps.append(self.naive(learner.backbone, weight, bias, media, codes, media, codes, 2, 1e-4, False)[2][-2])
        away = learner.learned["weight"].detach() - (steps[0] + steps[1]).detach() / 2
        torch.testing.assert_close(learner.learned["weight"].grad, away, rtol=1e-2, atol=1e-8)


class TestHeads:
    @pytest.mark.parametrize(("clips", "way", "width", "upper"), [(15, 3, 20, 0.1), (20, 5, 64, 1.0), (6, 3, 2, 0.5)])
    def test_support_vectors_are_those_of_liblinear(self, clips, way, width, upper):
        torch.manual_seed(clips)
        codes = torch.arange(clips) % way
        embeddings = torch.randn(clips, width) + F.one_hot(codes, max(width, way)).float()[:, :width]
        found = svm_weights(embeddings[None], F.one_hot(codes, way).float().T[None], upper)[0]
        reference = LinearSVC(multi_class="crammer_singer", fit_intercept=False, C=upper, tol=1e-8, max_iter=200_000)
        with warnings.catch_warnings(action="ignore"):
            reference.fit(embeddings.numpy(), codes.numpy())
        np.testing.assert_allclose(found.numpy(), reference.coef_, atol=1e-4 * np.abs(reference.coef_).max())

    def test_support_vectors_are_differentiated_exactly(self):
        torch.manual_seed(0)
        codes = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]] * 2)
        members = F.one_hot(codes, 3).double().transpose(1, 2)
        embeddings = torch.randn(2, 8, 5, dtype=torch.double, requires_grad=True)
        assert torch.autograd.gradcheck(lambda given: svm_weights(given, members, 0.3), (embeddings,), atol=1e-4)

    @pytest.mark.parametrize(
        "solver",
        [lambda x, m: svm_weights(x, m, 0.1), lambda x, m: ridge_weights(x * m.sum(dim=1)[..., None], m.mT, 2.0).mT],
    )
    def test_padding_changes_nothing(self, solver):
        torch.manual_seed(0)
        codes = torch.tensor([0, 1, 2, 0, 1, 2])
        members = F.one_hot(codes, 3).float().T[None]
        embeddings = torch.randn(1, 6, 8)
        padded = torch.cat([embeddings, torch.randn(1, 2, 8)], dim=1)
        found = solver(padded, torch.cat([members, torch.zeros(1, 3, 2)], dim=2))
        torch.testing.assert_close(found, solver(embeddings, members), rtol=1e-4, atol=1e-5)

    def test_ridge_weights_are_those_of_scikit_learn(self):
        torch.manual_seed(0)
        embeddings, targets = torch.randn(10, 20), F.one_hot(torch.arange(10) % 3, 3).float()
        found = ridge_weights(embeddings[None], targets[None], 1.5)[0]
        reference = Ridge(alpha=1.5, fit_intercept=False).fit(embeddings.numpy(), targets.numpy())
        np.testing.assert_allclose(found.T.numpy(), reference.coef_, atol=1e-5)

    def test_prototypes_lose_by_equation_10(self, clips, protocol):
        algorithm = load_algorithm("protonet")
        tasks = ClipTasks(protocol, clips, fsmer.create_model("ststnet")).batch(0, 2)
        learner = learner_of(algorithm, tasks)
        logits = algorithm.answers(learner, tasks, training=True)
        total = 0.0
        for number in range(2):
            with torch.no_grad():
                support, query = learner.backbone(tasks.support[number]), learner.backbone(tasks.query[number])
            centres = [support[tasks.support_codes[number] == code].mean(dim=0) for code in range(3)]
            for one, code in zip(query.double(), tasks.query_codes[number].tolist(), strict=True):
                distances = torch.stack([(one - centre.double()).square().sum() for centre in centres])
                total += float(distances[code] + torch.logsumexp(-distances, dim=0)) / len(query)
        assert float(query_loss(logits, tasks.query_codes)) == pytest.approx(total / 2, rel=1e-3)

    def test_prototypes_are_trained_at_the_rates_of_table_2(self):
        assert load_algorithm("protonet").rates(None) == {"": 1e-5, "projection": 1e-4}


class TestTasks:
    def test_portions_do_not_matter(self, clips, protocol):
        tasks = ClipTasks(protocol, clips, fsmer.create_model("ststnet"))
        whole, parts = tasks.batch(3, 4), [tasks.batch(3, 1), tasks.batch(4, 3)]
        for name in ("support", "support_codes", "query", "query_codes"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))

    def test_classes_change_their_places(self, clips, protocol):
        """Where all tasks have the same classes in the same places, they are learned by heart."""
        tasks = ClipTasks(protocol, clips, fsmer.create_model("ststnet"))
        batch = tasks.batch(0, 30)
        assert (batch.support_codes.sort(dim=1).values == torch.tensor([0, 0, 1, 1, 2, 2])).all()
        assert len({tuple(row.tolist()) for row in batch.support_codes}) == 6

    def test_folds_are_tasks_too(self, clips):
        tasks = ClipTasks(fsmer.load_protocol("loso"), clips, fsmer.create_model("ststnet"))
        batch = tasks.batch(0, 2)
        assert batch.support.shape[:2] == batch.support_codes.shape
        again = tasks.batch(len(tasks.episodes), 2)
        assert torch.equal(batch.support, again.support)


class TestValidation:
    def test_keeps_the_weights_that_did_best(self, clips, protocol, tmp_path):
        others = fsmer.synthetic_clips("clinic", 60, seed=9)
        options = {"validate_every": 2, "validation_tasks": 8, "steps": 8, "learning_rate": 0.02}
        judged = (protocol, others)
        model = trained("protonet", clips, protocol, validation=judged, out=tmp_path / "weights", **options)
        history = json.loads((tmp_path / "weights.history.json").read_text())["history"]
        looks = [(row["validation_accuracy"], row["step"]) for row in history if "validation_accuracy" in row]
        assert [step for _, step in looks] == [2, 4, 6, 8]
        best = max(looks, key=lambda one: (one[0], -one[1]))[1]
        shorter = trained("protonet", clips, protocol, **{**options, "steps": best})
        assert same(weights_of(model), weights_of(shorter))

    def test_ends_training_when_it_gets_no_better(self, clips, protocol, tmp_path):
        judged = (protocol, fsmer.synthetic_clips("clinic", 60, seed=9))
        options = {"validate_every": 1, "validation_tasks": 4, "steps": 50, "learning_rate": 0.0, "patience": 2}
        trained("protonet", clips, protocol, validation=judged, out=tmp_path / "weights", **options)
        history = json.loads((tmp_path / "weights.history.json").read_text())["history"]
        assert history[-1]["step"] == 3

    def test_goes_on_from_a_checkpoint(self, clips, protocol, tmp_path):
        judged = (protocol, fsmer.synthetic_clips("clinic", 60, seed=9))
        options = {"validate_every": 2, "validation_tasks": 4, "steps": 6, "validation": judged}
        whole = trained("anil", clips, protocol, **options)

        def stop(done, total):
            if done == 4:
                raise KeyboardInterrupt

        more = {"out": tmp_path / "weights", "checkpoint_every": 1}
        with pytest.raises(KeyboardInterrupt):
            trained("anil", clips, protocol, progress=stop, **options, **more)
        assert same(weights_of(whole), weights_of(trained("anil", clips, protocol, **options, **more)))


class TestOtherWays:
    def test_a_first_classifier_a_class_fixes_their_number(self, clips, protocol):
        model = trained("anil", clips, protocol)
        two = clips[np.isin(clips.labels, ["positive", "negative"])][:8]
        with pytest.raises(SupportError, match=r"3 classes.*2 classes.*shared_head"):
            fsmer.adapt(model, two)
        assert fsmer.adapt(model, two, "protonet").predict(two).shape == (8,)

    @pytest.mark.parametrize("name", ["anil", *INNER])
    def test_a_shared_one_serves_any_number(self, name, clips, protocol):
        model = trained(name, clips, protocol, shared_head=True)
        two = clips[np.isin(clips.labels, ["positive", "negative"])][:8]
        assert fsmer.adapt(model, two).predict(two).shape == (8,)


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"algorithm": "mamll"}, UnknownNameError, "maml"),
            ({"innersteps": 3, "algorithm": "maml"}, UnknownNameError, "inner_steps"),
            ({"algorithm": "maml", "inner_steps": -1}, MethodError, "inner_steps=-1"),
            ({"algorithm": "maml", "batch_norm": "both"}, MethodError, "'both'"),
            ({"algorithm": "protonet", "encoder_rate": -1}, MethodError, "encoder_rate=-1"),
            ({"steps": 0}, MethodError, "steps=0"),
            ({"steps": 1.5}, MethodError, r"steps=1.5 .*whole number"),
            ({"steps": None}, MethodError, "steps=None"),
            ({"batch": "many"}, MethodError, "batch='many'"),
            ({"learning_rate": -1.0}, MethodError, "learning_rate=-1.0"),
            ({"learning_rate": float("nan")}, MethodError, "learning_rate=nan"),
            ({"clip_gradient": 0}, MethodError, "clip_gradient=0"),
            ({"validate_every": 0}, MethodError, "validate_every=0"),
            ({"validation_tasks": 0}, MethodError, "validation_tasks=0"),
            ({"patience": 0}, MethodError, "patience=0"),
            ({"patience": 3}, MethodError, "patience=3 .*validation"),
            ({"seed": -1}, MethodError, "seed=-1"),
            ({"seed": 2**40}, MethodError, "seed=1099511627776"),
            ({"batch_norm": "task"}, MethodError, "'task'"),
            ({"checkpoint_every": 0}, MethodError, "checkpoint_every=0"),
            ({"resume": "perhaps"}, MethodError, "resume='perhaps'"),
            ({"progress": 3}, MethodError, "progress=3"),
            ({"arguments": ["size"]}, DataError, "list"),
            ({"out": 3}, OutputError, "int"),
            ({"log": 3}, OutputError, "int"),
            ({"clips": "my-clips"}, DataError, "str.*ClipSet"),
            ({"validation": ["kshot"]}, ProtocolError, "list.*tuple"),
            ({"layers": "some"}, MethodError, "'some'"),
            ({"layers": "upper"}, FsmerError, "lower"),
            ({"algorithm": "fomaml", "learning_rate": 1e20, "inner_rate": 100, "steps": 4}, SupportError, "rate"),
        ],
    )
    def test_is_one_sentence(self, options, error, words, clips, protocol):
        given = {"clips": clips, "steps": 1, "learning_rate": 1e-3, **options}
        name = given.pop("algorithm", "protonet")
        with pytest.raises(error, match=words) as caught:
            fsmer.meta_train("ststnet", protocol, name, **given)
        assert "\n" not in str(caught.value)

    def test_clips_of_other_media(self, clips, protocol):
        with pytest.raises(SpecMismatchError, match=r"flow.*'mubert_tiny'"):
            fsmer.meta_train(small_model("mubert_tiny"), protocol, clips=clips, steps=1)

    def test_episodes_without_support(self, clips, protocol):
        with pytest.raises(ProtocolError, match="shot=0"):
            fsmer.meta_train("ststnet", protocol.with_params(shot=0), clips=clips, steps=1, learning_rate=1e-3)

    def test_a_class_with_too_few_people_for_disjoint_sides(self, protocol):
        disjoint = protocol.with_params(subject_disjoint=True)
        alone = fsmer.synthetic_clips("lab", 60, subjects=1)
        with pytest.raises(ProtocolError, match=r"'negative'.*one subject"):
            fsmer.meta_train("ststnet", disjoint, clips=alone, steps=1, learning_rate=1e-3)

    def test_a_class_of_another_side_of_a_split(self, clips, protocol):
        base = clips[clips.labels != "surprise"]
        asked = protocol.with_params(way=2, class_subset=["negative", "surprise"])
        with pytest.raises(ProtocolError, match="'surprise'"):
            fsmer.meta_train("ststnet", asked, clips=base, steps=1, learning_rate=1e-3)

    def test_fewer_classes_than_ways(self, clips):
        with pytest.raises(ProtocolError, match="5"):
            fsmer.meta_train("ststnet", fsmer.load_protocol("kshot", way=5, query=1), clips=clips, learning_rate=1e-3)

    def test_validation_on_clips_that_are_trained_on(self, clips, protocol):
        with pytest.raises(ProtocolError, match="120 clips"):
            trained("protonet", clips, protocol, validation=(protocol, clips))

    def test_validation_of_another_number_of_classes(self, clips, protocol):
        judged = (protocol.with_params(way=2), fsmer.synthetic_clips("clinic", 30))
        with pytest.raises(ProtocolError, match=r"2 classes.*3"):
            trained("protonet", clips, protocol, validation=judged)

    def test_the_checkpoint_of_another_training(self, clips, protocol, tmp_path):
        def stop(done, total):
            if done == 3:
                raise KeyboardInterrupt

        options = {"out": tmp_path / "weights", "checkpoint_every": 1}
        with pytest.raises(KeyboardInterrupt):
            trained("protonet", clips, protocol, progress=stop, **options)
        with pytest.raises(WeightsError, match="another recipe or seed"):
            trained("protonet", clips, protocol, seed=5, **options)

    def test_fresh_weights_at_the_rates_of_trained_ones(self, clips, protocol):
        with pytest.warns(UserWarning, match="1e-05"):
            fsmer.meta_train("ststnet", protocol, "protonet", clips=clips, steps=1)


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(context, values):
        return 2 * values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, slopes):
        return 2 * slopes


class FirstOrderOnly(fsmer.Backbone):
    name = "first-order-only"

    def __init__(self):
        super().__init__(input_spec=fsmer.InputSpec(), embed_dim=3, config={})
        self.mix = nn.Linear(3, 3)

    def forward(self, inputs):
        return OnceDifferentiable.apply(self.mix(inputs.mean(dim=(2, 3))))


class TestOutsideNetworks:
    def test_without_second_derivatives_say_what_serves_them(self, clips, protocol):
        with pytest.raises(FsmerError, match=r"first-order-only.*fomaml"):
            trained("maml", clips, protocol, model=FirstOrderOnly())
        assert trained("fomaml", clips, protocol, model=FirstOrderOnly()).adaptation.algorithm == "fomaml"


class TestDrawnTasks:
    @pytest.mark.parametrize("pool", [8, None])
    def test_are_trained_on_and_validated_on(self, pool, tmp_path):
        drawn = {"way": 3, "shot": 1, "query": 2, "pool": pool}
        tasks = DrawnTasks(**drawn, classes=("4", "9", "12", "1+2"))
        judged = DrawnTasks(**drawn, family="validation", seed=1)
        options = {"steps": 2, "validation": judged, "validate_every": 2, "validation_tasks": 2}
        made = fsmer.meta_train("ststnet", tasks, learning_rate=1e-3, **options, out=tmp_path / "weights")
        history = json.loads((tmp_path / "weights.history.json").read_text())
        assert "validation_accuracy" in history["history"][-1]
        assert history["tasks"]["drawn"]["seed"] == 0
        assert made.adaptation.algorithm == "protonet"

    def test_clips_of_a_pool_are_those_of_the_drawn_tasks(self):
        drawn = DrawnTasks(way=2, shot=1, query=1, pool=2, classes=("4", "9", "12"))
        found = UnitSetTasks(drawn, fsmer.create_model("ststnet")).batch(3, 2)
        wanted = drawn.batch(3, 2)
        np.testing.assert_allclose(found.support.numpy(), wanted.support, atol=1e-6)
        assert found.query_codes.tolist() == wanted.query_codes.tolist()

    @pytest.mark.parametrize(
        ("judged", "words"),
        [
            ("novel-units-5way", "classes of protocol 'novel-units-5way'"),
            ("uneven-queries", "classes of protocol 'uneven-queries'"),
            ("new-camera", "infrared.*'new-camera'"),
            (DrawnTasks(family="novel"), "classes of these drawn tasks"),
            (DrawnTasks(domains=("lab", "kiosk")), "kiosk"),
        ],
    )
    def test_what_is_there_to_be_judged_on_is_not_trained_on_nor_validated_on(self, judged, words):
        with pytest.raises(ProtocolError, match=f"{words}.*base-units-5way"):
            fsmer.meta_train("ststnet", judged, learning_rate=1e-3)
        base = DrawnTasks(way=2, shot=1, query=1, pool=2, classes=("4", "9"))
        with pytest.raises(ProtocolError, match=f"{words}.*base-units-5way"):
            fsmer.meta_train("ststnet", base, learning_rate=1e-3, validation=judged)

    def test_a_network_of_other_media_names_the_way_round(self):
        with pytest.raises(ProtocolError, match="base-units-5way"):
            fsmer.meta_train("mubert_tiny", DrawnTasks(pool=40), learning_rate=1e-3)
