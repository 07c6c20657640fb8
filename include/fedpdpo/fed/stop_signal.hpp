// SIGTERM and SIGUSR1 (Slurm's warning): finish the step, checkpoint, ask to be requeued.
#pragma once

namespace fedpdpo {

/// Installs the handlers; call once.
void watch_stop_signals();
/// True once a signal arrived (in this process).
bool stop_requested();
/// For tests: as if a signal had arrived, or not.
void set_stop_requested(bool value);

}  // namespace fedpdpo
