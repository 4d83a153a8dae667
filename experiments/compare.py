"""Every method side by side: which makes a model fairer, at what price, and is it sure?

    python -m experiments.compare                        Adult by sex; 2 CPU cores: a minute
    python -m experiments.compare adult --criterion equal_opportunity
    python -m experiments.compare tables                 all tables at hand, and ranks over them
    python -m experiments.compare lesions                images, a pre-trained network
    python -m experiments.compare map                    where a method helps, on controlled data
    python -m experiments.compare tables --tables german.csv:credit:sex law.csv:pass:race

Rows: `plain` (the last epoch) and `plain@best`; balanced sampling, reweighing, group DRO and CVaR,
Just Train Twice, focal loss, CVaR of examples, logit adjustment by group, last-layer retraining
(`dfr`), FairBatch by losses and by rates, on images also a linear probe, normalisation alone and
LoRA, each at the epoch that `--select` finds best on validation; and all of them `+thresholds`, one
a group, chosen on validation. Changes are paired, against `plain` and against thresholds on `plain`
that are as accurate on validation as the row. "Worst change": the group that loses most.
A method that fails is marked, and the others go on.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import jax

from experiments import cli
from experiments.compare_map import MapConfig, prepare_map
from experiments.data import Data, load_data, make_augment
from experiments.files import named_errors, replacing, write_atomically
from experiments.results import page_facts, power
from experiments.run import Run, add_seconds, data_summary, main
from fairjax import report
from fairjax.compare import (
    ADAPTING,
    METHODS,
    Adapting,
    Criterion,
    Method,
    Select,
    Setting,
    Strengths,
    check_setting,
    combinations,
    compare_methods,
    cross_methods,
    effects,
    make_recipe,
)
from fairjax.data import Dataset, given_split, resplits
from fairjax.models import load_pretrained, logistic_regression, mlp
from fairjax.report import comparison as told


@dataclasses.dataclass(frozen=True)
class Config:
    """All methods on one table or several."""

    about: cli.Hidden = ""
    sets: tuple[str, ...] = ("adult",)
    """adult, census, synthetic, or compas (the file --compas), each with :COLUMN[+COLUMN] for other
    groups than those by sex; with --model lesions:DOMAIN, shortcut or target"""
    tables: tuple[str, ...] = ()
    """CSV files of yours, FILE:LABEL:SENSITIVE[:POSITIVE] each"""
    compas: Path | None = None
    """ProPublica's compas-scores-two-years.csv"""
    methods: tuple[Method | Adapting, ...] = METHODS
    """plain training always runs beside them"""
    cross: bool = False
    """every sampler of --methods with every loss and part that trains: main effects and pairs"""
    criterion: Criterion = "equalized_odds"
    """whose gap is to fall; FairBatch and thresholds are after it"""
    select: Select = "dto"
    """which of ten epochs of a run is judged, by validation: nearest to the best accuracy of the
    ten without a gap (dto; one of both classes, where there is one), or the highest value"""
    cost: cli.Inside = 0.005
    """accuracy that +thresholds may give up on validation, against the best single threshold"""
    num_splits: cli.Count | None = None
    """drawn anew, stratified on (label, group); 10, or 5 where test was given"""
    num_seeds: cli.Count = 2
    """starts and orders of batches on each split"""
    num_steps: cli.Count = 2_700
    """of every training"""
    batch_size: cli.Count | None = None
    """a 45th of the training rows, of 32 to 512"""
    learning_rate: cli.Positive = 0.005
    hidden: tuple[cli.Count, ...] = ()
    """units of hidden layers; none is logistic regression"""
    model: Literal["vit_micro", "vgg_micro"] | None = None
    """pre-trained network that all methods start from, for images"""
    image_size: cli.Count = 32
    num_images: tuple[cli.Count, cli.Count, cli.Count] = (1600, 800, 2400)
    """of train, val and test of lesions"""
    fairbatch_step: cli.Positive = 0.01
    rate_step: cli.Positive = 0.04
    dro_step: cli.Positive = 0.01
    upweight: cli.Positive = 6.0
    """how often jtt repeats what plain training gets wrong after a tenth of its epochs"""
    gamma: cli.NonNegative = 2.0
    """of the focal loss"""
    worst_share: cli.Inside = 0.5
    """whose loss group_cvar (of rows) and cvar (of a batch) train on"""
    tau: cli.NonNegative = 1.0
    """of logit adjustment"""
    seeds: cli.Seeds = cli.Seeds()
    data_seed: cli.Seed = 0
    num_replicates: cli.Replicates = 500
    """bootstrap replicates behind the 95 % intervals"""
    out: Path | None = None
    """result folder; default runs/compare-<time>"""
    resume: bool = False
    """go on with the interrupted run in --out, set by set"""


IMAGES: dict[str, Any] = {
    **{"model": "vit_micro", "num_splits": 3, "num_seeds": 1, "num_steps": 250, "batch_size": 32},
    **{"learning_rate": 0.001, "rate_step": 0.1},
}
PRESETS: dict[str, Config | MapConfig] = {
    "adult": Config(about="UCI Adult by sex; a minute on 2 cores"),
    "tables": Config(
        about="Adult by sex and race, two Gaussians, KDD Census; --compas and --tables for more",
        sets=("adult", "adult:race", "synthetic", "census"),
    ),
    "cross": Config(
        about="lesions: samplers x losses x what trains x thresholds; 5 minutes on 2 cores",
        sets=("lesions:shortcut",),
        methods=("group_dro", "fairbatch@rate", "focal", "norm_only"),
        cross=True,
        **IMAGES,
    ),
    "map": MapConfig(about="36 cells of controlled data, 5 methods, 5 draws; 3 minutes on 2 cores"),
    "lesions": Config(
        about="synthetic lesions, pre-trained vit_micro, 3 splits; 5 minutes on 2 cores",
        sets=("lesions:shortcut", "lesions:target"),
        methods=("group_balanced", "group_dro", "fairbatch@rate", "dfr", *ADAPTING),
        **IMAGES,
    ),
    "smoke": Config(
        about="seconds, for tests",
        sets=("synthetic",),
        num_splits=2,
        num_seeds=1,
        num_steps=40,
        batch_size=100,
        num_replicates=20,
    ),
    "smoke_lesions": Config(
        about="a minute, for tests",
        sets=("lesions:shortcut",),
        methods=("group_dro", "dfr", "linear_probe", "norm_only"),
        model="vit_micro",
        image_size=16,
        num_images=(64, 64, 64),
        num_splits=2,
        num_seeds=1,
        num_steps=4,
        batch_size=16,
        num_replicates=20,
    ),
    "smoke_map": MapConfig(
        about="seconds, for tests",
        shares=(0.2,),
        sizes=(50, 100),
        strengths=(1.0,),
        methods=("reweighted", "thresholds"),
        num_splits=2,
        num_steps=10,
        batch_size=50,
    ),
}
SIZES = {"adult": "0.5,0.1,0.4"}  # a group's true-positive rate needs a large test split


def prepare_run(config: Config | MapConfig):
    """Check everything that can be before anything is trained; returns the function that trains."""
    if isinstance(config, MapConfig):
        return prepare_map(config)
    cli.check_numbers(config)
    chosen_methods(config)
    sources = name_sources(config)
    run = Run("compare", config, out=config.out, resume=config.resume)
    settings, failed = {}, []
    for name, source in sources.items():
        cli.phase(f"reading {name}")
        try:
            data = load_data(source, image_size=config.image_size if config.model else None)
            setting = make_setting(config, data)
            check_setting(setting)
            settings[name] = setting
        except (ValueError, OSError) as error:
            failed.append(f"{name} left out: {' '.join(str(error).split())}")
            if len(sources) == 1:
                raise
    if not settings:
        raise ValueError("no setting can be compared: " + "; ".join(failed))
    cells = {name: kept_cell(run, name, each.data) for name, each in settings.items()}
    for line in failed:
        cli.say(line)
    return lambda: run_all(config, run.start(), settings, cells, failed)


def chosen_methods(config: Config) -> tuple[str, ...]:
    """What is trained beside plain training."""
    return tuple(combinations(cross_methods(config.methods))) if config.cross else config.methods


def name_sources(config: Config) -> dict[str, Data]:
    """What to read, by the name of the setting."""
    found = {}
    for text in config.sets:
        source, _, columns = text.partition(":")
        known = ("lesions",) if config.model else ("adult", "census", "synthetic", "compas")
        if source not in known:
            beside = "with --model" if config.model else "without --model"
            raise ValueError(f"{beside} --sets knows {', '.join(known)}, got {text!r}")
        more: dict[str, Any] = {"split": SIZES[source]} if source in SIZES else {}
        if source == "lesions":
            counts = dict(zip(("num_train", "num_val", "num_test"), config.num_images, strict=True))
            more = {"domain": columns or "target", **counts}
        elif columns:
            more["sensitive"] = tuple(columns.split("+"))
        if source == "compas":
            if config.compas is None:
                raise ValueError("--sets compas needs --compas, the published file")
            more["csv"] = (config.compas,)
        found[text] = Data(source, seed=config.data_seed, **more)
    if config.compas is not None and "compas" not in found:
        found["compas"] = Data("compas", seed=config.data_seed, csv=(config.compas,))
    for text in config.tables:
        path, *columns = text.rsplit(":", 3) if text.count(":") > 2 else text.split(":")
        if len(columns) not in (2, 3):
            raise ValueError(f"--tables takes FILE:LABEL:SENSITIVE[:POSITIVE], got {text!r}")
        label, sensitive, positive = (*columns, None)[:3]
        found[f"{Path(path).stem}:{sensitive}"] = Data(
            "csv",
            seed=config.data_seed,
            csv=(Path(path),),
            label=str(label),
            sensitive=tuple(str(sensitive).split("+")),
            positive=positive,
        )
    if config.model and config.tables:
        raise ValueError("--tables are for networks for tables; leave --model out")
    if not found:
        raise ValueError("--sets and --tables name nothing to train on")
    return found


def kept_cell(run: Run, name: str, data: Dataset) -> dict[str, Any] | None:
    """The results of a setting that the folder of a resumed run holds."""
    path = run.folder / f"{told.file_name(name)}.json"
    if not path.exists():
        return None
    with named_errors("read", path):
        cell = json.loads(path.read_text())
    if cell["data"]["fingerprint"] != data.fingerprint:
        raise ValueError(
            f"{path} is of data with fingerprint {cell['data']['fingerprint']}, {name} has "
            f"{data.fingerprint}: they do not belong into one table"
        )
    return cell


def run_all(config: Config, run: Run, settings, cells, failed: list[str]) -> None:
    """Every setting that has no results yet, or what failed; then the tables and the page."""
    timing: dict[str, float] = {}
    for name in [name for name, cell in cells.items() if cell is None]:
        try:
            cells[name] = compare(config, name, settings[name], timing)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            failed.append(f"{name} left out: {' '.join(str(error).split())}")
            if len(cells) == 1:
                raise
            del cells[name]
            cli.say(failed[-1])
            continue
        path = run.folder / f"{told.file_name(name)}.json"
        write_atomically(path, json.dumps(cells[name], indent=1))
        run.log({"setting": name, "rows": len(cells[name]["results"])})
        run.may_stop()
    show(config, run, cells, failed, timing)


def compare(config: Config, name: str, setting: Setting, timing: dict[str, float]):
    """Train, select, add thresholds and judge on one setting; what its file holds."""
    found = compare_methods(
        setting,
        chosen_methods(config),
        select=config.select,
        cost=config.cost,
        num_replicates=config.num_replicates,
        on_trained=lambda names: cli.say(f"{name}: trained {', '.join(names)}"),
    )
    add_seconds(timing, found.seconds)
    rows, data = list(found.rows), setting.data
    weights = effects(rows) if config.cross else {}
    shown = rows if len(name_sources(config)) == 1 else rows[:1]  # a page for one reader
    missing = ["no effects: a combination is missing"] if config.cross and not weights else []
    return {
        "data": {**data_summary(data), "power": power(data, config.num_seeds, setting.splits)},
        "results": told.row_results(rows, rows[: found.num_rivals], found.judged, data.group_names),
        "effects": told.effect_results(weights, found.judged),
        "figures": report.score_curves(shown, found.scores[:, 0], data, setting.splits.test[0]),
        "left_out": found.left_out,
        "notes": [*found.notes, *missing],
    }


def make_setting(config: Config, data: Dataset) -> Setting:
    """Splits, network and recipe."""
    num_splits = config.num_splits or (5 if data.fixed_test else 10)
    drawn = num_splits > 1
    splits = resplits(data, num_splits, config.data_seed) if drawn else given_split(data)
    num_rows = splits.train.shape[1]
    batch_size = config.batch_size or min(num_rows, max(32, num_rows // 45), 512)
    recipe = make_recipe(config.num_steps, num_rows, batch_size, config.learning_rate)
    weights = None
    if config.model is None:
        sizes = data.inputs.shape[1], data.num_classes
        model = mlp(*sizes, config.hidden) if config.hidden else logistic_regression(*sizes)
    else:
        key, size = jax.random.key(config.seeds.start), config.image_size
        model, weights = load_pretrained(config.model, data.num_classes, key, image_size=size)
        num_epochs = -(-config.num_steps // max(1, num_rows // batch_size))
        more: Any = {"num_epochs": num_epochs, "schedule": "cosine"}
        recipe = dataclasses.replace(recipe, augment=make_augment("flips", size), **more)
    return Setting(
        data,
        splits,
        config.num_seeds,
        model,
        recipe,
        weights=weights,
        criterion=config.criterion,
        strengths=Strengths(**cli.settings(config, Strengths._fields)),
        start_seed=config.seeds.start,
        batch_seed=config.seeds.batches,
    )


def show(config: Config, run: Run, cells: dict[str, Any], failed: list[str], timing) -> None:
    """Write summary.json, the tables and the page; print what matters."""
    settings = {name: cell["results"] for name, cell in cells.items()}
    left_out = {name: cell["left_out"] for name, cell in cells.items()}
    notes = [*failed, "AUC is of scores: rows with thresholds of groups have none of their own."]
    for name, cell in cells.items():
        more = [*cell["data"]["notes"], *cell["notes"], f"means over {cell['data']['power']}"]
        notes += [f"{name}: {note}" for note in more]
    notes.append(told.chance_note(settings, left_out))
    ranked, figures, more = told.rank_settings(settings, config.criterion)
    notes += more
    facts = {name: cell["data"] for name, cell in cells.items()}
    data = next(iter(facts.values())) if len(facts) == 1 else facts
    results = next(iter(settings.values())) if len(settings) == 1 else settings
    summary = run.finish(data=data, results=results, timing=timing, notes=notes)
    if ranked:
        write_atomically(run.folder / "ranks.json", json.dumps(ranked, indent=1) + "\n")
    columns, lines = told.comparison_cells(settings, config.criterion, left_out)
    write_atomically(run.folder / "results.csv", told.as_csv(settings))
    write_atomically(run.folder / "results.md", report.as_markdown(columns, lines) + "\n")
    write_atomically(run.folder / "results.tex", told.as_latex(columns, lines))
    answer = told.comparison_sentence(settings, config.criterion)
    print(cli.table(columns, [[value for value, _ in line] for line in lines]))
    for note in notes:
        print(f"note: {note}")
    gap = f"{config.criterion}_difference"
    figures |= report.trade_offs(settings, gap)
    for name, cell in cells.items():
        drawn = cell["figures"].items()
        figures |= {f"{name}: {heading}; the first run": svg for heading, svg in drawn}
    with replacing(run.folder / "report.html") as page:
        report.write_report(
            page,
            title=f"Comparison on {', '.join(settings)}",
            question="Which method makes a model fairer, at what price, and is it sure?",
            answer=answer,
            columns=columns,
            rows=lines,
            caption="Test, means over splits and seeds; below, 95 % bootstrap intervals "
            f"({config.num_replicates} replicates resampling test examples and splits). Changes "
            "are paired.",
            tables=told.effect_tables({k: v["effects"] for k, v in cells.items()}, gap),
            groups=told.groups_of_settings(settings, ("plain", *chosen_methods(config))),
            figures=figures,
            notes=notes,
            command=summary["command"],
            facts=page_facts(
                summary, ", ".join(f"{k}: {v['fingerprint']}" for k, v in facts.items())
            ),
        )
    print(f"\n{answer}\nresults in {run.folder}, page {run.folder / 'report.html'}")


if __name__ == "__main__":
    main(prepare_run, PRESETS, description=__doc__ or "")
