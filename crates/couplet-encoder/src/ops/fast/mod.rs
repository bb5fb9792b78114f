//! The CPU kernels: each operator is fused over a block of rows that stays in the cache.
//!
//! Everything here runs on the calling thread and on plain slices. [`pulp`] selects the instruction set at run time and
//! inlines the kernels into code that is compiled for it. So one binary uses AVX-512 where available, and AVX2 or NEON
//! elsewhere.

mod attention;
mod backend;
mod dot;
pub(super) mod elementwise;
mod embed;
pub(super) mod gemm;
mod int16;
mod linear;
mod products;
mod quantize;

use std::cell::RefCell;

use pulp::{NullaryFnOnce, Simd};

pub(super) use attention::{AttendFirst, FirstTokens};
pub use backend::FastKernels;
pub(super) use backend::embed;
pub(super) use dot::Int16Kernel;
pub(super) use linear::Layer;
pub(super) use products::Products;

use attention::Attention;
use embed::Embed;
use gemm::Panels;
use linear::{AddNorm, Epilogue, FeedForward, Linear};
use quantize::Int16Rows;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Buffers that a thread reuses between calls.
#[derive(Default)]
struct Scratch {
    quantized: Int16Rows,
    hidden: Vec<f32>,
    keys: Panels,
    values: Panels,
    scores: Vec<f32>,
}

impl Scratch {
    /// Takes the thread's buffers; [`Scratch::put`] returns them.
    ///
    /// `with_borrow_mut` does not work here: its closure would be compiled without the caller's instruction set.
    fn take() -> Self {
        SCRATCH.take()
    }

    fn put(self) {
        SCRATCH.set(self);
    }
}

/// An instruction set with SIMD and fused multiply-add.
#[derive(Debug, Clone, Copy)]
pub enum Isa {
    /// AVX-512 with F, BW, CD, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    /// NEON, which every 64-bit ARM processor has.
    #[cfg(target_arch = "aarch64")]
    Neon(pulp::aarch64::Neon),
}

impl Isa {
    /// Detects the best instruction set of this machine; none if it has no supported one.
    pub(super) fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = pulp::x86::V4::try_new().map(Self::Avx512);
            avx512.or_else(|| pulp::x86::V3::try_new().map(Self::Avx2))
        }
        #[cfg(target_arch = "aarch64")]
        {
            pulp::aarch64::Neon::try_new().map(Self::Neon)
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        None
    }

    /// Runs an operator compiled for the instruction set, with a register tile of the size that uses its registers
    /// best.
    pub(super) fn run<O: Operator>(self, operator: O) -> O::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.vectorize(Run::<_, _, 12, 2> { simd, operator }),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.vectorize(Run::<_, _, 6, 2> { simd, operator }),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => simd.vectorize(Run::<_, _, 6, 4> { simd, operator }),
        }
    }

    /// Returns the number of columns of the register tile, which is also the width of a panel.
    pub(super) fn panel_width(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => 32,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => 16,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => 16,
        }
    }
}

/// A kernel that works in register tiles of `R` rows and `C` vectors.
pub(super) trait Operator {
    type Output;

    fn run<S: Simd, const R: usize, const C: usize>(self, simd: S) -> Self::Output;
}

/// Adapts an operator to [`Simd::vectorize`].
struct Run<S, O, const R: usize, const C: usize> {
    simd: S,
    operator: O,
}

impl<S: Simd, O: Operator, const R: usize, const C: usize> NullaryFnOnce for Run<S, O, R, C> {
    type Output = O::Output;

    #[inline(always)]
    fn call(self) -> O::Output {
        self.operator.run::<S, R, C>(self.simd)
    }
}
