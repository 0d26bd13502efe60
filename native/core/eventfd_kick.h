// Wakes whatever waits on a process's eventfds.
#pragma once

#include <sys/types.h>

#include <cstddef>

namespace colo {

// Signals every eventfd that the process has open, and returns how many they are. Of QEMU, all are event
// notifiers, whose readers look at what they are about and find nothing new: a spurious wake-up does no harm.
// (Not so VFIO's error and request notifiers; a VM with VFIO devices is refused, src/vm/preflight.ts.)
//
// What it is for: an iothread tells the guest that a request has ended by an eventfd (virtio_notify_irqfd),
// and since QEMU 8.2 only after the request has counted as ended (hw/virtio/virtio.c, deferred for a whole
// batch). A VM that is stopped in between has that signal and not the interrupt: it isn't in the device
// state, and the stopped VM itself doesn't get it after its `cont` either (seen on 10.0 and 11.1: the disk
// stands for good). So whoever runs a VM that was stopped, or that was loaded from a state, signals all of
// them once. Throws ERR_COLO_PROCESS when there is no such process or it can't be looked into.
std::size_t kick_eventfds(pid_t pid);

}  // namespace colo
