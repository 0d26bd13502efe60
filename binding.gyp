{
  "includes": ["native/sources.gypi"],
  "targets": [
    {
      "target_name": "colo_agent",
      "sources": ["<@(core_sources)", "<@(addon_sources)"],
      "include_dirs": ["."],
      "defines": ["<@(addon_defines)"],
      # Node.js's own settings that these sources must not get; and no -Werror, for this is built by compilers that we haven't met.
      "cflags_cc!": ["-std=gnu++17", "-std=gnu++20", "-fno-exceptions", "-fno-rtti", "-O3", "-Werror"],
      "cflags_cc": [
        "<@(cxx_flags)",
        "-fvisibility=hidden",
        # As a system folder: its warnings are not ours.
        "-isystem", "<!(node -p \"require('path').resolve(require('node-addon-api').include_dir)\")"
      ],
      "ldflags": ["-pthread"]
    }
  ]
}
