#include "disk_export.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "error.h"

namespace colo {

DiskExport::DiskExport(const DiskLogOptions& options, DiskLog::Events events)
    : id_(options.id), log_(options, until_closed(std::move(events))) {}

DiskExport::~DiskExport() { close(); }

DiskLog::Events DiskExport::until_closed(DiskLog::Events events) const {
  const auto is_open = [this] {
    const std::lock_guard lock(mutex_);
    return !closed_;
  };
  return {[is_open, pressure = std::move(events.pressure)] {
            if (is_open()) pressure();
          },
          [is_open, failed = std::move(events.failed)](const std::string& reason) {
            if (is_open()) failed(reason);
          }};
}

void DiskExport::serve(UniqueFd socket) {
  const std::lock_guard lock(mutex_);
  if (closed_) throw Error("ERR_COLO_CLOSED", 0, "the export of disk '" + id_ + "' is closed");
  reap_locked();
  Client& client = clients_.emplace_back(std::move(socket), log_);
  try {
    client.thread = std::thread([this, &client] { run(client); });
  } catch (const std::exception&) {
    clients_.pop_back();
    throw;
  }
}

void DiskExport::run(Client& client) {
  std::string end = "it has left";
  try {
    client.connection.serve([&] {
      const std::lock_guard lock(mutex_);
      client.in_transmission = true;
    });
  } catch (const std::exception& error) {
    end = error.what();
  }
  client.connection.cut();  // its socket is closed only when somebody else comes
  bool lost = false;
  {
    const std::lock_guard lock(mutex_);
    lost = client.in_transmission;
    client.in_transmission = false;
  }
  // INVARIANT 3: what the guest writes from here on passes by unseen.
  if (lost) log_.lose("the mirror of disk '" + id_ + "' has ended: " + end);
  const std::lock_guard lock(mutex_);
  client.ended = true;
}

void DiskExport::reap_locked() {
  clients_.remove_if([](Client& client) {
    if (client.ended) client.thread.join();
    return client.ended;
  });
}

std::uint64_t DiskExport::clients() const {
  const std::lock_guard lock(mutex_);
  const auto served = [](const Client& client) { return client.in_transmission; };
  return static_cast<std::uint64_t>(std::count_if(clients_.begin(), clients_.end(), served));
}

void DiskExport::require_mirror() const {
  if (clients() == 0) throw Error("ERR_COLO_DISK", 0, "no mirror writes to the export of disk '" + id_ + "'");
}

std::shared_ptr<NbdClient> DiskExport::begin_source(UniqueFd socket, const std::string& export_name) {
  const auto source = std::make_shared<NbdClient>(std::move(socket), export_name);
  const std::lock_guard lock(mutex_);
  if (closed_) throw Error("ERR_COLO_CLOSED", 0, "the export of disk '" + id_ + "' is closed");
  if (begun_) begun_->cut();
  return begun_ = source;
}

void DiskExport::require_begun_locked(const std::shared_ptr<NbdClient>& source) const {
  if (begun_ != source) throw Error("ERR_COLO_CLOSED", 0, "the source of disk '" + id_ + "' was closed");
}

void DiskExport::connect_source(const std::shared_ptr<NbdClient>& begun) {
  try {
    begun->negotiate();
  } catch (const Error&) {
    const std::lock_guard lock(mutex_);
    require_begun_locked(begun);
    begun_.reset();
    throw;
  }
  const std::lock_guard lock(mutex_);
  require_begun_locked(begun);
  begun_.reset();
  if (begun->size_bytes() != log_.size_bytes()) {
    throw Error("ERR_COLO_DISK", 0,
                "its source has " + std::to_string(begun->size_bytes()) + " bytes where disk '" + id_ +
                    "' has " + std::to_string(log_.size_bytes()));
  }
  if (source_) source_->cut();
  source_ = begun;
}

void DiskExport::close_source() {
  const std::lock_guard lock(mutex_);
  for (auto* client : {&source_, &begun_}) {
    if (*client) std::exchange(*client, nullptr)->cut();
  }
}

std::shared_ptr<NbdClient> DiskExport::source() const {
  const std::lock_guard lock(mutex_);
  if (!source_) throw Error("ERR_COLO_DISK", 0, "the source of disk '" + id_ + "' isn't connected");
  return source_;
}

void DiskExport::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    for (Client& client : clients_) client.connection.cut();
  }
  close_source();
  std::call_once(ended_, [this] {
    // Nothing is added once it is closed.
    for (Client& client : clients_) client.thread.join();
    {
      const std::lock_guard lock(mutex_);
      clients_.clear();
    }
    log_.lose("the export of disk '" + id_ + "' was closed");
  });
}

}  // namespace colo
