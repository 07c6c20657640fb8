// The kernels that run single instructions, for the emulated device.
#include "../backend/cuda/probe.cu"  // NOLINT: which test_backend has as CUDA
