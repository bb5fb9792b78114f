//! The dot-product instructions of [`super::int16`].

use pulp::bytemuck::Pod;
#[cfg(target_arch = "x86_64")]
use pulp::x86::{V3, V4};

use super::Isa;

/// The number of pairs of 16-bit integers in a vector.
pub(super) const LANES: usize = 16;

/// The instructions that multiply 16-bit integers.
#[derive(Debug, Clone, Copy)]
pub enum Int16Kernel {
    /// The reference for the tests of the others. Not used otherwise, as it is slower than f32.
    #[cfg(test)]
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(V3),
    #[cfg(target_arch = "x86_64")]
    Avx512(V4),
    /// `vpdpwssd` with Winograd's inner product, for CPUs that add and multiply in parallel (AMD since Zen 4).
    #[cfg(target_arch = "x86_64")]
    VnniWinograd(Vnni),
    /// `vpdpwssd`, for CPUs without spare adders (Intel, according to its documented ports; not measured).
    #[cfg(target_arch = "x86_64")]
    Vnni(Vnni),
}

impl Int16Kernel {
    /// Returns the fastest kernel of an instruction set; none if f32 is faster.
    #[cfg_attr(target_arch = "x86_64", expect(clippy::unnecessary_wraps, reason = "NEON has none"))]
    pub fn for_isa(isa: Isa) -> Option<Self> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(v3) => Some(Self::Avx2(v3)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(v4) => Some(match Vnni::try_new() {
                // The first four letters of "AuthenticAMD".
                Some(vnni) if std::arch::x86_64::__cpuid(0).ebx == u32::from_le_bytes(*b"Auth") => {
                    Self::VnniWinograd(vnni)
                }
                Some(vnni) => Self::Vnni(vnni),
                None => Self::Avx512(v4),
            }),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => None,
        }
    }
}

/// Arithmetic on vectors of 16 pairs of 16-bit integers (modulo 2^16) or of 16 sums of 32 bits (modulo 2^32).
pub(super) trait Dot: Copy {
    type Vector: Pod;
    /// Returns a vector with the same pair, or the same 32-bit sum, in all lanes.
    fn splat(self, pair: i32) -> Self::Vector;
    fn add_16(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn add_32(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// Adds the dot product of each lane's pairs to the lane's sum.
    fn add_dot(self, sums: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector;
}

#[derive(Clone, Copy)]
#[cfg(test)]
pub(super) struct Portable;

#[cfg(test)]
impl Dot for Portable {
    // Pairs as 32-bit integers, which the compiler keeps in the target's baseline vectors.
    type Vector = [i32; LANES];

    #[inline(always)]
    fn splat(self, pair: i32) -> Self::Vector {
        [pair; LANES]
    }

    #[inline(always)]
    fn add_16(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        lane_by_lane(a, b, |a, b| low(a).wrapping_add(low(b)) & 0xffff | high(a).wrapping_add(high(b)) << 16)
    }

    #[inline(always)]
    fn add_32(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        lane_by_lane(a, b, i32::wrapping_add)
    }

    #[inline(always)]
    fn add_dot(self, sums: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.add_32(sums, lane_by_lane(a, b, |a, b| (low(a) * low(b)).wrapping_add(high(a) * high(b))))
    }
}

#[cfg(test)]
#[inline(always)]
fn lane_by_lane(a: [i32; LANES], b: [i32; LANES], f: impl Fn(i32, i32) -> i32) -> [i32; LANES] {
    let mut out = [0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[cfg(test)]
#[inline(always)]
fn low(pair: i32) -> i32 {
    pair << 16 >> 16
}

#[cfg(test)]
#[inline(always)]
fn high(pair: i32) -> i32 {
    pair >> 16
}

#[cfg(target_arch = "x86_64")]
pulp::simd_type! {
    /// AVX-512 with `vpdpwssd`. The compiler then combines `vpmaddwd` and `vpaddd` into that instruction.
    pub struct Vnni {
        avx: "avx",
        avx2: "avx2",
        fma: "fma",
        avx512f: "avx512f",
        avx512bw: "avx512bw",
        avx512dq: "avx512dq",
        avx512vl: "avx512vl",
        avx512vnni: "avx512vnni",
    }
}

#[cfg(target_arch = "x86_64")]
impl Dot for V3 {
    type Vector = [std::arch::x86_64::__m256i; 2];

    #[inline(always)]
    fn splat(self, pair: i32) -> Self::Vector {
        [self.avx._mm256_set1_epi32(pair); 2]
    }

    #[inline(always)]
    fn add_16(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        [self.avx2._mm256_add_epi16(a[0], b[0]), self.avx2._mm256_add_epi16(a[1], b[1])]
    }

    #[inline(always)]
    fn add_32(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        [self.avx2._mm256_add_epi32(a[0], b[0]), self.avx2._mm256_add_epi32(a[1], b[1])]
    }

    #[inline(always)]
    fn add_dot(self, sums: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        self.add_32(sums, [self.avx2._mm256_madd_epi16(a[0], b[0]), self.avx2._mm256_madd_epi16(a[1], b[1])])
    }
}

/// Implements [`Dot`] for an instruction set with AVX-512 BW.
#[cfg(target_arch = "x86_64")]
macro_rules! dot_512 {
    ($simd:ty) => {
        impl Dot for $simd {
            type Vector = std::arch::x86_64::__m512i;

            #[inline(always)]
            fn splat(self, pair: i32) -> Self::Vector {
                self.avx512f._mm512_set1_epi32(pair)
            }

            #[inline(always)]
            fn add_16(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
                self.avx512bw._mm512_add_epi16(a, b)
            }

            #[inline(always)]
            fn add_32(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
                self.avx512f._mm512_add_epi32(a, b)
            }

            #[inline(always)]
            fn add_dot(self, sums: Self::Vector, a: Self::Vector, b: Self::Vector) -> Self::Vector {
                self.add_32(sums, self.avx512bw._mm512_madd_epi16(a, b))
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
dot_512!(V4);
#[cfg(target_arch = "x86_64")]
dot_512!(Vnni);
