// One function for each decoder of bytes that come from a peer, from QEMU, from the kernel or from a file.
// Two drivers feed them: libFuzzer (driver.cc, `npm run fuzz`) and the native tests, which replay the corpus.
#pragma once

#include <cstddef>
#include <span>

namespace colo::fuzz {

using Input = std::span<const std::byte>;

// Whether the input was taken as a whole or ended in one of the decoder's own errors. Anything else that an
// input can bring about (a crash, an assertion, another exception, what a sanitizer sees, an answer that
// differs from the slow oracle's) is a finding.
enum class Verdict { accepted, refused };

Verdict acceptor(Input input);
Verdict bulk_preface(Input input);
Verdict bulk_receiver(Input input);
Verdict disk_differs(Input input);
Verdict disk_payloads(Input input);
Verdict gate_port(Input input);
Verdict nbd_client(Input input);
Verdict nbd_server(Input input);
Verdict page_entries(Input input);
Verdict process_maps(Input input);
Verdict process_stat(Input input);
Verdict vmstate_mailbox(Input input);

struct Target {
  const char* name;  // also that of its folder in native/fuzz/corpus
  Verdict (*run)(Input input);
};

inline constexpr Target kTargets[] = {
    {"acceptor", acceptor},         {"bulk_preface", bulk_preface},   {"bulk_receiver", bulk_receiver},
    {"disk_differs", disk_differs}, {"disk_payloads", disk_payloads}, {"gate_port", gate_port},
    {"nbd_client", nbd_client},     {"nbd_server", nbd_server},       {"page_entries", page_entries},
    {"process_maps", process_maps}, {"process_stat", process_stat},   {"vmstate_mailbox", vmstate_mailbox},
};

}  // namespace colo::fuzz
