{
  "includes": ["native/sources.gypi"],
  "targets": [
    {
      "target_name": "colo_agent",
      "sources": ["<@(core_sources)", "<@(addon_sources)"],
      "include_dirs": ["."],
      "defines": ["<@(addon_defines)"],
      "cflags_cc!": ["-std=gnu++17", "-std=gnu++20", "-fno-exceptions", "-fno-rtti", "-O3"],
      "cflags_cc": [
        "<@(cxx_flags)",
        "-fexceptions",
        "-frtti",
        "-fvisibility=hidden",
        "-isystem", "<!(node -p \"require('node-addon-api').include_dir\")"
      ],
      "ldflags": ["-pthread"],
      "variables": {
        "xxhash": "<!(sh scripts/check-headers.sh)"
      }
    }
  ]
}
