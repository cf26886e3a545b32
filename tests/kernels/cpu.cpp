// What Python lacks: the device guard that a CPU build of torch has not for CUDA, so that fake tensors of that device can be
// made; and sums of a product with one rounding, as a GPU takes them.
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <cmath>

C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA>);

extern "C" void fma_f64(const double* a, const double* b, const double* c, double* out, long n) {
  for (long i = 0; i < n; i++) out[i] = std::fma(a[i], b[i], c[i]);
}

extern "C" void fma_f32(const float* a, const float* b, const float* c, float* out, long n) {
  for (long i = 0; i < n; i++) out[i] = std::fma(a[i], b[i], c[i]);
}
