{
  "variables": {
    "core_sources": [
      "native/core/acceptor.cc",
      "native/core/capture.cc",
      "native/core/checkpoint_stream.cc",
      "native/core/descriptors.cc",
      "native/core/dirty_bitmap.cc",
      "native/core/dirty_tracker.cc",
      "native/core/error.cc",
      "native/core/guest_memory.cc",
      "native/core/output_gate.cc",
      "native/core/page_delta.cc",
      "native/core/primary_engine.cc",
      "native/core/process_watch.cc",
      "native/core/ram_cache.cc",
      "native/core/remote_syscall.cc",
      "native/core/shadow.cc",
      "native/core/standby_engine.cc",
      "native/core/vmstate_mailbox.cc",
      "native/core/worker_pool.cc"
    ],
    "addon_sources": [
      "native/addon/addon.cc"
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
