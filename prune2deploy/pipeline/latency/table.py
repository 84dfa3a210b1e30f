"""The measured latency table of an engine: what is kept, filled for a model where one is named, and exported."""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median

from prune2deploy.budget.alignment import granule_for
from prune2deploy.engines.registry import AUTO
from prune2deploy.errors import EngineError, InputError
from prune2deploy.graph.unit import Unit, UnitModel
from prune2deploy.graph.units import unit_model
from prune2deploy.latency.environment import Environment, environment_of
from prune2deploy.latency.export import check_export, export_measurements
from prune2deploy.latency.setting import Setting
from prune2deploy.latency.store import Holding, LatencyStore
from prune2deploy.latency.table import MeasuredTable, measured_surfaces
from prune2deploy.latency.words import words
from prune2deploy.pipeline.backends import find_channels
from prune2deploy.pipeline.bench import usable_cores
from prune2deploy.pipeline.cutting import example_inputs
from prune2deploy.pipeline.latency.rows import HoldingRow, LatencyTableOutcome, ModelTable, UnitRow
from prune2deploy.pipeline.measurable import usable_engine
from prune2deploy.pipeline.requests import LatencyTableRequest
from prune2deploy.pipeline.subject import named_subject
from prune2deploy.progress import SILENT, Progress


def run_latency_table(
    request: LatencyTableRequest, progress: Progress = SILENT, *, store: LatencyStore | None = None
) -> LatencyTableOutcome:
    """Clear, fill, export, and tell what there is: what ``request`` asks of it, in this order.

    ``store`` None is the one in the user's cache folder.

    Raises:
        InputError, CheckpointError, ModelError: the subject cannot be read or traced, there are no latencies at that
            precision, or the file to export to is of no known format.
        EngineError: the engine does not run here, or not one of the units (named).
        StorageError: what is kept cannot be read, or the export not written.
    """
    if request.export is not None:
        check_export(request.export)
    store = LatencyStore(progress=progress) if store is None else store
    cleared = store.clear(engine=_cleared_engine(request)) if request.clear else None
    table = None if request.subject is None else _filled(request, store, progress)
    if request.export is not None:
        export_measurements(request.export, store.measurements())
    return LatencyTableOutcome(
        file=store.path,
        holdings=_holdings(store.holdings()),
        table=table,
        cleared=cleared,
        exported=request.export,
    )


def _cleared_engine(request: LatencyTableRequest) -> str | None:
    """The engine whose measurements are to be dropped, None for all."""
    return usable_engine(AUTO).name if request.engine == AUTO else request.engine


def _filled(request: LatencyTableRequest, store: LatencyStore, progress: Progress) -> ModelTable:
    """The table of the model that is named, measured where it has gaps."""
    assert request.subject is not None
    engine = usable_engine(request.engine or AUTO, (request.precision,))
    setting = Setting(
        engine=engine.name,
        precision=request.precision,
        batch=request.batch,
        threads=request.threads or usable_cores(),
    )
    granule = request.alignment or granule_for(engine.name, request.precision)
    subject = named_subject(
        request.subject,
        model=request.model,
        input_shape=request.input_shape,
        trust_pickle=request.trust_pickle,
        progress=progress,
    )
    channels = find_channels(subject.model, example_inputs(subject.input_shape), progress=progress)
    model = unit_model(channels.traced)
    measured = measured_surfaces(
        model.widest(),
        setting,
        granule=granule,
        store=store,
        weights=Counter(term.unit for term in model.terms),
        progress=progress,
    )
    rows = _unit_rows(model, measured)
    return ModelTable(
        model=str(subject.spec),
        input_shape=subject.input_shape,
        engine=setting.engine,
        precision=setting.precision,
        batch=setting.batch,
        threads=setting.threads,
        granule=granule,
        units=rows,
        total_ns=sum(row.total_ns for row in rows),
        measured=measured.measured,
        reused=measured.reused,
        seconds=measured.seconds,
        spread=measured.spread,
        unpriced=model.unpriced,
    )


def _unit_rows(model: UnitModel, measured: MeasuredTable) -> tuple[UnitRow, ...]:
    """One row a unit, in the order of execution."""
    places: dict[Unit, list[tuple[str, float]]] = {}
    for term in model.terms:
        sizes = [len(model.widths[width]) for width in term.widths]
        latency_ns = float(measured.surfaces[term.unit].at(*sizes))
        places.setdefault(term.unit, []).append((term.name, latency_ns))
    total = sum(latency_ns for found in places.values() for _, latency_ns in found)
    rows = []
    for unit, widest in model.widest().items():
        surface, timings = measured.surfaces[unit], measured.timings[unit]
        own = sum(latency_ns for _, latency_ns in places[unit])
        half = _half(widest, timings)
        rows.append(
            UnitRow(
                unit=words(unit),
                layers=tuple(dict.fromkeys(name for name, _ in places[unit])),
                times=len(places[unit]),
                widths=widest,
                half_widths=half,
                latency_ns=float(surface.at(*widest)),
                half_ns=float(surface.at(*half)),
                total_ns=own,
                share=own / total if total else 0.0,
                points=len(timings),
                spread=median(timing.spread_ns / max(timing.latency_ns, 1e-9) for timing in timings.values()),
            )
        )
    return tuple(rows)


def _half(widest: Sequence[int], measured: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Of the measured widths of each axis the one that lies nearest to half of it."""
    points = list(measured)
    return tuple(
        min((point[axis] for point in points), key=lambda width: abs(2 * width - full))
        for axis, full in enumerate(widest)
    )


def _holdings(holdings: Sequence[Holding]) -> tuple[HoldingRow, ...]:
    return tuple(
        HoldingRow(
            engine=one.environment.engine,
            version=one.environment.version,
            device=one.environment.device,
            precision=one.environment.precision,
            threads=one.environment.threads,
            batch=one.batch,
            units=one.units,
            points=one.points,
            first_at=one.first_at,
            last_at=one.last_at,
            current=_is_current(one.environment),
        )
        for one in holdings
    )


def _is_current(environment: Environment) -> bool:
    """Whether measurements of an environment are what this machine would find now."""
    setting = Setting(engine=environment.engine, precision=environment.precision, threads=environment.threads)
    try:
        return environment_of(setting) == environment
    except (InputError, EngineError):
        return False
