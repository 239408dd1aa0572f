//! IR's floating-point ops as operations of the host (`hostfp`), and back.

use crate::hostfp::sse::SseOp;
use ir::FpOp;

macro_rules! pairs {
    ($($sse:ident = $ir:ident),* $(,)?) => {
        /// The IR op that is this operation under the default control bits of MXCSR, if there is one.
        pub fn op_of(op: SseOp) -> Option<FpOp> {
            Some(match op {
                $(SseOp::$sse => FpOp::$ir,)*
                _ => return None,
            })
        }

        fn host_op(op: FpOp) -> SseOp {
            match op {
                $(FpOp::$ir => SseOp::$sse,)*
            }
        }
    };
}

pairs! {
    Addps = AddP32, Addpd = AddP64, Addss = AddS32, Addsd = AddS64,
    Subps = SubP32, Subpd = SubP64, Subss = SubS32, Subsd = SubS64,
    Mulps = MulP32, Mulpd = MulP64, Mulss = MulS32, Mulsd = MulS64,
    Divps = DivP32, Divpd = DivP64, Divss = DivS32, Divsd = DivS64,
    Minps = MinP32, Minpd = MinP64, Minss = MinS32, Minsd = MinS64,
    Maxps = MaxP32, Maxpd = MaxP64, Maxss = MaxS32, Maxsd = MaxS64,
    Sqrtps = SqrtP32, Sqrtpd = SqrtP64, Sqrtss = SqrtS32, Sqrtsd = SqrtS64,
    Cmpps0 = Cmp0P32, Cmppd0 = Cmp0P64, Cmpss0 = Cmp0S32, Cmpsd0 = Cmp0S64,
    Cmpps1 = Cmp1P32, Cmppd1 = Cmp1P64, Cmpss1 = Cmp1S32, Cmpsd1 = Cmp1S64,
    Cmpps2 = Cmp2P32, Cmppd2 = Cmp2P64, Cmpss2 = Cmp2S32, Cmpsd2 = Cmp2S64,
    Cmpps3 = Cmp3P32, Cmppd3 = Cmp3P64, Cmpss3 = Cmp3S32, Cmpsd3 = Cmp3S64,
    Cmpps4 = Cmp4P32, Cmppd4 = Cmp4P64, Cmpss4 = Cmp4S32, Cmpsd4 = Cmp4S64,
    Cmpps5 = Cmp5P32, Cmppd5 = Cmp5P64, Cmpss5 = Cmp5S32, Cmpsd5 = Cmp5S64,
    Cmpps6 = Cmp6P32, Cmppd6 = Cmp6P64, Cmpss6 = Cmp6S32, Cmpsd6 = Cmp6S64,
    Cmpps7 = Cmp7P32, Cmppd7 = Cmp7P64, Cmpss7 = Cmp7S32, Cmpsd7 = Cmp7S64,
    Addsubps = AddSubP32, Addsubpd = AddSubP64, Haddps = HAddP32, Haddpd = HAddP64, Hsubps = HSubP32, Hsubpd = HSubP64,
    Cvtps2pd = P32ToP64, Cvtpd2ps = P64ToP32, Cvtss2sd = S32ToS64, Cvtsd2ss = S64ToS32,
    Cvtdq2ps = I32ToP32, Cvtdq2pd = I32ToP64, Cvtps2dq = P32ToI32, Cvttps2dq = P32ToI32T,
    Cvtpd2dq = P64ToI32, Cvttpd2dq = P64ToI32T,
    Comiss = ComiS32, Comisd = ComiS64, Ucomiss = UcomiS32, Ucomisd = UcomiS64,
    Cvtss2si32 = S32ToI32, Cvtss2si64 = S32ToI64, Cvttss2si32 = S32ToI32T, Cvttss2si64 = S32ToI64T,
    Cvtsd2si32 = S64ToI32, Cvtsd2si64 = S64ToI64, Cvttsd2si32 = S64ToI32T, Cvttsd2si64 = S64ToI64T,
    Cvtsi2ss32 = I32ToS32, Cvtsi2ss64 = I64ToS32, Cvtsi2sd32 = I32ToS64, Cvtsi2sd64 = I64ToS64,
}

/// `ir::fp::RunFp`: `flags` is MXCSR.
pub fn run(op: FpOp, a: u128, b: u128, flags: &mut u32) -> u128 {
    /// ZF, PF and CF: LAHF also gives bit 1, which is always set.
    const COMPARED: u128 = 0x45;
    let mut r = a;
    *flags |= host_op(op).run(&mut r, b as u64, (b >> 64) as u64, *flags);
    match op {
        FpOp::ComiS32 | FpOp::ComiS64 | FpOp::UcomiS32 | FpOp::UcomiS64 => r & COMPARED,
        _ => r,
    }
}
