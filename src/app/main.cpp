// fedpdpo: parse, dispatch, and turn what goes wrong into one line and an exit code (0 done, 2 bad input, 75
// checkpointed and asks to be requeued, 1 anything else).
#include <fmt/format.h>

#include <string>
#include <string_view>
#include <vector>

#include "commands.hpp"
#include "fedpdpo/core/error.hpp"
#include "fedpdpo/core/log.hpp"
#include "fedpdpo/fed/stop_signal.hpp"

namespace {

int dispatch(const fedpdpo::Communicator& world, const fedpdpo::CommandLine& line) {
  using fedpdpo::Command;
  switch (line.command) {
    case Command::run:
      return fedpdpo::run_command(world, line);
    case Command::plan:
      return fedpdpo::plan_command(world, line);
    case Command::partition:
      return fedpdpo::partition_command(world, line);
    case Command::export_models:
      return fedpdpo::export_command(world, line);
    case Command::evaluate:
      return fedpdpo::evaluate_command(world, line);
    case Command::inspect:
      return fedpdpo::inspect_command(world, line);
    case Command::bench:
      return fedpdpo::bench_command(world, line);
    case Command::help:
      if (world.rank() == 0) fmt::print("{}\n", line.help);
      return 0;
    case Command::version:
      if (world.rank() == 0) fmt::print("{}\n", fedpdpo::version_line());
      return 0;
  }
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  // From the first moment on: a warning signal that comes during start-up stops the run at its first step.
  if (argc > 1 && std::string_view(argv[1]) == "run") fedpdpo::watch_stop_signals();
  fedpdpo::MpiSession session(&argc, &argv);
  const fedpdpo::Communicator world = fedpdpo::Communicator::world();
  fedpdpo::set_log_rank(world.rank());
  // Input errors and requeue requests are raised on every rank alike; rank 0 speaks.
  try {
    const fedpdpo::CommandLine line = fedpdpo::parse_command_line({argv + 1, argv + argc});
    if (world.rank() == 0)
      for (const std::string& warning : line.warnings) fedpdpo::log_warning(warning);
    return dispatch(world, line);
  } catch (const fedpdpo::InputError& error) {
    if (world.rank() == 0) fedpdpo::log_error(error.what());
    return 2;
  } catch (const fedpdpo::RequeueRequest& request) {
    if (world.rank() == 0) fedpdpo::log_info(request.what());
    return 75;
  } catch (const std::exception& error) {
    fedpdpo::log_error(error.what());
    fedpdpo::MpiSession::abort(1);
  }
}
