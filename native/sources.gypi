{
  "variables": {
    "core_sources": [
      "native/core/acceptor.cc",
      "native/core/bulk_receiver.cc",
      "native/core/bulk_sender.cc",
      "native/core/capture.cc",
      "native/core/checkpoint_stream.cc",
      "native/core/compare_tracker.cc",
      "native/core/descriptors.cc",
      "native/core/dirty_bitmap.cc",
      "native/core/disk_stream.cc",
      "native/core/error.cc",
      "native/core/frame_buffer.cc",
      "native/core/gate_port.cc",
      "native/core/guest_memory.cc",
      "native/core/link_sockets.cc",
      "native/core/memory_region.cc",
      "native/core/output_gate.cc",
      "native/core/page_applier.cc",
      "native/core/page_delta.cc",
      "native/core/page_kernels.cc",
      "native/core/primary_engine.cc",
      "native/core/process_maps.cc",
      "native/core/process_vm.cc",
      "native/core/process_watch.cc",
      "native/core/ram_cache.cc",
      "native/core/remote_syscall.cc",
      "native/core/shadow.cc",
      "native/core/socket_io.cc",
      "native/core/standby_engine.cc",
      "native/core/userfaultfd_tracker.cc",
      "native/core/vmstate_mailbox.cc",
      "native/core/worker_pool.cc"
    ],
    "addon_sources": [
      "native/addon/acceptor_class.cc",
      "native/addon/addon.cc",
      "native/addon/arguments.cc",
      "native/addon/completions.cc",
      "native/addon/descriptors_functions.cc",
      "native/addon/environment.cc",
      "native/addon/errors.cc",
      "native/addon/output_gate_class.cc",
      "native/addon/primary_engine_class.cc",
      "native/addon/process_watch_class.cc",
      "native/addon/results.cc",
      "native/addon/standby_engine_class.cc"
    ],
    "addon_defines": [
      "NAPI_VERSION=8",
      "NODE_ADDON_API_CPP_EXCEPTIONS",
      "NODE_ADDON_API_DISABLE_DEPRECATED",
      "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"
    ],
    "cxx_flags": ["-std=c++20", "-O2", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror", "-fno-strict-aliasing"]
  }
}
