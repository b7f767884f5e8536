"""Options that go to Apache Beam, and through it to a job server."""

import argparse
from collections.abc import Collection, Sequence

import apache_beam.options.pipeline_options as beam_options

from dpgmm_beam.errors import ConfigError
from pipelines.arguments import nearest, unknown

# Runners that ask a job server which options it has beside Beam's own.  Python
# does not know these; Beam takes from the command line what the server names.
JOB_SERVER_RUNNERS = ("flinkrunner", "portablerunner", "sparkrunner")

# Beam's FlinkPipelineOptions, for batch jobs, by the names that its job server
# describes them with.  As there, a flag takes no value: it turns on what is off
# by default, and turns off what is on: operator_chaining.
FLINK_FLAGS = (
    "auto_balance_write_files_sharding_enabled",
    "disable_metrics",
    "faster_copy",
    "force_slot_sharing_group",
    "object_reuse",
    "operator_chaining",
    "re_iterable_group_by_key_result",
    "use_data_stream_for_batch",
)
FLINK_NUMBERS = (
    "execution_retry_delay",
    "file_input_split_max_size_m_b",
    "job_check_interval_in_secs",
    "latency_tracking_interval",
    "max_bundle_size",
    "max_bundle_time_mills",
    "number_of_execution_retries",
)
FLINK_WORDS = ("execution_mode_for_batch", "flink_conf_dir")

# Of PortablePipelineOptions, which every job server in Java has.
SERVER_FLAGS = ("load_balance_bundles",)

# Of Beam's SparkPipelineOptions, likewise.
SPARK_FLAGS = ("cache_disabled", "enable_spark_metric_sinks")
SPARK_NUMBERS = ("bundle_size",)
SPARK_WORDS = ("storage_level",)

JOB_SERVER_FLAGS = (*FLINK_FLAGS, *SERVER_FLAGS, *SPARK_FLAGS)
JOB_SERVER_NUMBERS = (*FLINK_NUMBERS, *SPARK_NUMBERS)
JOB_SERVER_WORDS = (*FLINK_WORDS, *SPARK_WORDS)
JOB_SERVER_OPTIONS = (*JOB_SERVER_FLAGS, *JOB_SERVER_NUMBERS, *JOB_SERVER_WORDS)


def beam_pipeline_options(arguments: Sequence[str]) -> beam_options.PipelineOptions:
    """Beam's options from what a verb's own parser did not know.

    Options of `JOB_SERVER_OPTIONS` are let through, for Beam to hand on, where
    the runner asks a job server.

    Raises:
      ConfigError: an argument is not an option of Beam either (Beam itself
        only warns, and a misspelt --epsilon would then be ignored), or not with
        this value.
    """
    check(arguments)
    return beam_options.PipelineOptions(list(arguments))


def check(arguments: Sequence[str], own: Collection[str] = ()) -> None:
    """As `beam_pipeline_options`, for a parser that gave these arguments back.

    Args:
      arguments: what it did not know.
      own: its options, any of which a mistyped one may be meant for.
    """
    parser = _beam_parser()
    # Before Beam reads the runner's name from them, for it would print its usage.
    rest = _parse(parser, arguments)
    asks = asks_job_server(beam_options.PipelineOptions(list(arguments)))
    if asks:
        _add_job_server(parser)
        rest = _parse(parser, arguments)
    if rest:
        _refuse(rest, asks, [*own, *parser._option_string_actions])


def known() -> dict[str, argparse.Action]:
    """Every option that Beam or a job server may take, by its name, e.g. --flink_master."""
    parser = _beam_parser()
    _add_job_server(parser)
    return {name: action for name, action in parser._option_string_actions.items() if name[:2] == "--"}


def _beam_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    pending = [beam_options.PipelineOptions]
    seen = set()
    while pending:
        options = pending.pop()
        pending.extend(options.__subclasses__())
        # Third-party subclasses may re-declare an option; the first one wins.
        if "_add_argparse_args" in vars(options) and options not in seen:
            seen.add(options)
            scratch = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
            options._add_argparse_args(scratch)  # type: ignore[arg-type]
            for action in scratch._actions:
                if not set(action.option_strings) & set(parser._option_string_actions):
                    parser._add_action(action)
    return parser


def _add_job_server(parser: argparse.ArgumentParser) -> None:
    for name in JOB_SERVER_FLAGS:
        parser.add_argument(f"--{name}", action="store_true")
    for name in JOB_SERVER_NUMBERS:
        parser.add_argument(f"--{name}", type=int)
    for name in JOB_SERVER_WORDS:
        parser.add_argument(f"--{name}")


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """The arguments that the parser does not know; a bad value of one that it knows is a ConfigError."""
    try:
        return parser.parse_known_args(list(arguments))[1]
    except argparse.ArgumentError as error:
        # Beam has hundreds of options: its own sentence alone, without the list of them.
        names = (error.argument_name or "").split("/")
        raise ConfigError(
            names[0], _given(arguments, names), f"be as Apache Beam takes it ({error.message})"
        ) from None


def asks_job_server(options: beam_options.PipelineOptions) -> bool:
    """Whether the runner asks a job server for the options that it has."""
    return runner_name(options) in JOB_SERVER_RUNNERS


def runner_name(options: beam_options.PipelineOptions) -> str:
    """The runner's name without its module, in lower case, e.g. "flinkrunner"; "" for none given."""
    name = (options.view_as(beam_options.StandardOptions).runner or "").rpartition(".")[2].lower()
    # Beam takes "flink" for FlinkRunner, and so for each of its runners.
    return name if not name or name.endswith("runner") else name + "runner"


def is_given(arguments: Sequence[str], name: str) -> bool:
    """Whether an option that Python's Beam does not know is among the arguments."""
    return any(argument.partition("=")[0] == f"--{name}" for argument in arguments)


def _refuse(rest: Sequence[str], asks: bool, names: Collection[str]) -> None:
    name, value = unknown(rest)
    allowed = "be an option of this verb or of Apache Beam"
    if name.removeprefix("--") in JOB_SERVER_OPTIONS and not asks:
        allowed = "come with a --runner that has a job server, such as FlinkRunner"
    elif name.startswith("-"):
        allowed += nearest(name, names)
    raise ConfigError(name, value, allowed)


def _given(arguments: Sequence[str], names: Sequence[str]) -> str:
    """The value that follows an option of any of the names; '' where there is none."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in names:
            return value if equals or following.startswith("--") else following
    return ""
