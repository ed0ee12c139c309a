import json
import types

import pytest

from regseg_jax.config import create_default_config, parse_config
from regseg_jax.models import field_of_view, variants
from regseg_jax.runs.workdir import claim_workdir
from regseg_jax.search import compare


@pytest.fixture
def found() -> variants.Variant:
    return variants.create_variant("exp48", "decoder26", 13 * [[2, 3]])


@pytest.fixture
def hand_tuned() -> variants.Variant:
    return variants.get_variant("exp48_decoder26")


def test_random_rates_lie_under_the_bound_and_differ_by_seed(found, hand_tuned):
    drawn = [compare.draw_random_variant(found, hand_tuned, seed) for seed in range(20)]
    assert drawn[3] == compare.draw_random_variant(found, hand_tuned, 3)
    assert len({variant.name for variant in drawn}) == 20
    rates = [variants.get_dilation_rates(variant.backbone) for variant in drawn]
    assert all(not field_of_view.find_gaps(variant.backbone) for variant in drawn)
    assert {max(block) for one in rates for block in one[:1]} == {1, 2, 3}
    assert max(rate for one in rates for block in one for rate in block) == 14
    assert all(tuple(sorted(block)) == block for one in rates for block in one)


def test_every_seed_trains_each_kind_of_rates(found, hand_tuned):
    runs = compare.plan_runs(found, hand_tuned, 2, (180, 240))
    assert [run.name for run in runs] == [
        *("searched_0", "hand-tuned_0", "clipped_0", "random_0"),
        *("searched_1", "hand-tuned_1", "clipped_1", "random_1"),
    ]
    assert runs[4].model == found.name
    assert runs[5].model == "exp48_decoder26"
    assert runs[6].model == runs[2].model


def test_clipped_rates_reach_over_half_a_map(hand_tuned):
    clipped = compare.clip_variant(hand_tuned, (180, 240))  # maps of 12 x 15
    assert variants.get_dilation_rates(clipped.backbone) == (
        *((1,), (1, 2)),
        *(4 * ((1, 4),)),
        *(7 * ((1, 6),)),
    )
    assert compare.clip_variant(hand_tuned, (768, 768)).backbone == hand_tuned.backbone


def test_comparison_resumes_and_reports(found, monkeypatch, tmp_path):
    trained = []

    def fake_train(config, workdir):
        claim_workdir(parse_config(config), workdir)
        trained.append((workdir.name, config.seed, config.num_epochs))
        if len(trained) == 5:
            return None  # SIGTERM
        return types.SimpleNamespace(
            scores=types.SimpleNamespace(mean_iou=0.5 + 0.01 * len(trained))
        )

    monkeypatch.setattr(compare, "train", fake_train)
    config = create_default_config()
    config.data.source, config.num_epochs = "synthetic", 5
    assert compare.compare(config, found.name, tmp_path, 2) is None
    records = compare.compare(config, found.name, tmp_path, 2)
    # The stopped run is the only one that was started twice, all with the same budget.
    names = [name for name, *_ in trained]
    kinds = ("searched", "hand-tuned", "clipped", "random")
    assert names[:5] == [*(f"{kind}_0" for kind in kinds), "searched_1"]
    assert names[5:] == [f"{kind}_1" for kind in kinds]
    assert all(name.endswith(str(seed)) and epochs == 5 for name, seed, epochs in trained)
    assert (config.seed, config.model) == (0, "exp48_decoder26")

    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["runs"] == records
    assert (tmp_path / "comparison.png").exists()
    assert records[0]["mean_iou"] == 0.51
    assert records[4]["mean_iou"] == 0.56
    table = compare.format_comparison(records)
    line = next(line for line in table.splitlines() if line.startswith("searched"))
    assert line.split()[-5:] == ["51.00,", "56.00", "53.50", "3.54", "-"]
    # By seed: 51 - 52 and 56 - 57.
    line = next(line for line in table.splitlines() if line.startswith("hand-tuned"))
    assert line.split()[-3:] == ["-1.00", "+-", "0.00"]
    assert written["searched_minus"]["random"]["pairs"] == 2
    assert written["macs"] == 10_768_297_728

    config.optimizer.learning_rate = 1.0
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate was 0\.05 and is 1\.0"):
        compare.compare(config, found.name, tmp_path, 2)


def test_a_search_is_no_comparison(found, tmp_path):
    config = create_default_config()
    config.data.source, config.search.enabled = "synthetic", True
    with pytest.raises(ValueError, match=r"search\.enabled is True"):
        compare.compare(config, found.name, tmp_path, 1)
