// Which Highway targets are built, for every vectorised file alike: AVX-512, AVX2 with FMA, and portable code for any
// other x86-64 processor. Include before anything of hwy.
#pragma once

#define HWY_DISABLED_TARGETS (HWY_AVX3_DL | HWY_SSE4 | HWY_SSSE3)
