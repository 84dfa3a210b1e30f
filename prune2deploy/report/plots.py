"""The report's plots, in reading order. Each is a function of the content, or None where there is nothing to draw."""

from collections.abc import Iterator

from prune2deploy.report.canvas import Plot
from prune2deploy.report.content import ReportContent
from prune2deploy.report.latency_plots import latency_plots
from prune2deploy.report.methods import method_plots
from prune2deploy.report.profile_plots import profile_plots
from prune2deploy.report.run_plots import history_plot, widths_plot
from prune2deploy.report.signal_plots import signal_plots
from prune2deploy.report.speed_plots import accuracy_latency_plot, distribution_plot, speedup_plot


def report_plots(content: ReportContent) -> tuple[Plot, ...]:
    """What a reader should see first: speeds, accuracy, widths, training."""
    return tuple(plot for plot in _all_plots(content) if plot is not None)


def measuring_plots(content: ReportContent) -> tuple[Plot, ...]:
    """How the machine behaved while it measured: to be shown on demand."""
    return signal_plots(content.result.samples) if content.result is not None else ()


def _all_plots(content: ReportContent) -> Iterator[Plot | None]:
    yield speedup_plot(content)
    for number, setting in enumerate(content.settings):
        yield accuracy_latency_plot(content, setting, key=f"pareto{number}")
    for number, setting in enumerate(content.settings):
        yield distribution_plot(content, setting, key=f"latency{number}")
    yield from profile_plots(content)
    yield from latency_plots(content)
    yield widths_plot(content)
    yield history_plot(content)
    yield from method_plots(content)
