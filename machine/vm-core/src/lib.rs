//! The waist between CPU engines and devices: guest RAM, memory map, buses, interrupt lines, time, saved state, and the
//! traits (`CpuIo`, `Vcpu`, `Device`, `GuestCpu`, `GuestEnv`) through which engines, devices and the machine meet.
//!
//! No engine knows a device; no device knows a CPU, a thread or another device (docs/ARCHITECTURE.md).

pub mod accel;
pub mod addr;
pub mod bus;
pub mod clock;
pub mod debug;
pub mod device;
pub mod dma;
pub mod guest;
pub mod icount;
pub mod irq;
pub mod log;
pub mod memmap;
pub mod observe;
pub mod ram;
pub mod saved;
pub mod signals;
pub mod testing;

pub use accel::{CpuIo, StopReason, Vcpu};
pub use addr::{Pa, Va};
pub use bus::{DeviceCell, MmioBus, PortBus};
pub use clock::{Clock, Timer};
pub use device::{Device, Mmio, PortIo, Stateless};
pub use dma::Dma;
pub use guest::{Access, Fault, GuestCpu, GuestEnv};
pub use icount::InsnCounter;
pub use irq::{IrqLine, IrqSink, MsiSink};
pub use memmap::{MemMap, Shadow, Smram, SmramParts, Target};
pub use ram::{PageBits, Ram};
pub use saved::{LoadError, Section};
pub use signals::{Events, VcpuSignals};
