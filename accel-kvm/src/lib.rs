//! KVM as a CPU engine (`vm_core::Vcpu` over /dev/kvm). Not written yet: `-accel kvm` is refused.
