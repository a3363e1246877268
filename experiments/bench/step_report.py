"""How `experiments.bench.step` says what it measured: tables on the terminal and one in the README."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments import console as report
from experiments.bench.contenders import CONTENDERS
from experiments.bench.results import markdown, milliseconds, spread
from experiments.bench.step import describe
from experiments.bench.workload import Workload

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.bench.step import Options

COLUMNS = (
    *("contender", "ms a step", "least to most", "x ours", "95 % interval", "images/s"),
    *("step MB", "process MB", "first step s", "% of matmul peak", "% of copy peak"),
)


def show(content: Mapping[str, Any], options: "Options", console: "Console | None" = None) -> None:
    """Prints a table for each workload, and what the figures rest on."""
    out = console or report.console()
    for work in options.workloads():
        rows = select(content["results"], work)
        if rows:
            title = (
                f"{describe(work)}, batch {work.batch} of {work.size}x{work.size}x3, median of {options.rounds} rounds"
            )
            report.table(title, COLUMNS, [cells(row) for row in rows], to=out)
    for line in notes(content):
        out.print(line, markup=False, soft_wrap=True)


def select(results: Sequence[Mapping[str, Any]], work: Workload) -> list[Mapping[str, Any]]:
    """The results of a workload."""
    wanted = {"task": work.task, "loss": work.loss, "batch": work.batch}
    return [result for result in results if wanted.items() <= result.items()]


def cells(result: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    name = result["label"] if result["same_network"] else f"{result['label']} ({report.number(result['parameters'])})"
    return [
        name,
        milliseconds(result["step_seconds"]["median"]),
        spread(result["step_seconds"]),
        "-" if result["ratio_to_ours"] is None else f"{result['ratio_to_ours']:.2f}",
        "{:.2f} to {:.2f}".format(*result["ratio_interval"]) if result["ratio_interval"] else "-",
        f"{result['images_per_second']:.1f}",
        "-" if result["memory_bytes"] is None else f"{result['memory_bytes'] / 1e6:.0f}",
        f"{result['process_peak_bytes'] / 1e6:.0f}",
        f"{result['first_step_seconds']:.1f}",
        f"{100 * result['matmul_share']:.0f}" if result["same_network"] else "-",
        "-" if result["copy_share"] is None else f"{100 * result['copy_share']:.0f}",
    ]


def notes(content: Mapping[str, Any]) -> list[str]:
    """The machine, its peaks, the versions, who is absent, and what disturbed the measurement."""
    machine, peaks = content["machine"], content["peaks"]
    rates = [f"{name.removeprefix('matmul_')} matmul {value / 1e9:.0f} GFLOP/s" for name, value in peaks.items()]
    rates = [text for text in rates if not text.startswith("copy")]
    versions = sorted({result["version"] for result in content["results"]})
    lines = [
        f"machine: {machine['processor']}, {machine['device']}; measured peaks: {', '.join(rates)}, "
        f"copy {peaks['copy'] / 1e9:.1f} GB/s (read and write)",
        f"versions: {', '.join(versions)}",
    ]
    operations = {
        (result["task"], result["loss"], result["batch"]): result["network_flops"] for result in content["results"]
    }
    lines += [
        f"{describe(Workload(task=task, loss=loss))}, batch {batch}: {count / 1e9:.1f} GFLOP by XLA's count"
        for (task, loss, batch), count in operations.items()
    ]
    lines.append(
        "% matmul: these operations in the time, of the measured peak. % copy: the bytes that the operations of the "
        "compiled program read and write, of the measured peak; only XLA lists them, caches may serve them"
    )
    lines.append("x ours: the median of the rounds' own ratios, and its 95 % interval, from six rounds on")
    lines.append(
        "step MB: what the device saw at most; on a CPU, the plan of JAX's compiler, or what PyTorch's profiler saw. "
        "process MB: all that the process had at most, compiling included"
    )
    if machine["platform"] == "cpu":
        whose = "all contenders keep" if content["keep_freed_memory"] else "jaxunet alone keeps"
        lines.append(f"memory: {whose} what was freed (experiments.allocator)")
    lines += [f"absent: {CONTENDERS[name].label} ({reason})" for name, reason in content["absent"].items()]
    lines += [f"failed: {reason}" for reason in content["failed"].values()]
    if content["kept_caches"]:
        lines.append(f"first steps may find programs compiled before: {', '.join(content['kept_caches'])} is set")
    share = content["idle_cpu_share"]
    if share > 0.01:
        lines.append(f"warning: processes that waited used {100 * share:.1f} % of a processor")
    return lines


def to_markdown(content: Mapping[str, Any], options: "Options") -> str:
    """The README's table: a row a workload and contender, and below it what the figures rest on."""
    columns = ("", *COLUMNS[1:9], "% matmul", "% copy")
    rows = []
    for work in options.workloads():
        for result in select(content["results"], work):
            name, *figures = cells(result)
            rows.append([f"{describe(work)}, batch {work.batch}: {name}", *figures])
    lines = "\n".join(f"- {line}" for line in notes(content))
    size = f"{options.size}x{options.size}x3"
    words = f"Images of {size}, {options.rounds} rounds, dropout {options.dropout_rate:g} a level."
    return f"{words}\n\n{markdown(columns, rows)}\n\n{lines}"
