// The disk of a protected VM, as its primary's agent has it: the NBD export that QEMU's mirror job writes to,
// and the source from which blocks are read for the standby.
//
// An NBD server of its own rather than a plugin of nbdkit's: each guest write waits for it, and would wait
// for one more process and pipe; and what it does is to fill the log, which lies in this process.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "disk_log.h"
#include "nbd_client.h"
#include "nbd_connection.h"
#include "unique_fd.h"

namespace colo {

// Thread rules: every function may be called from any thread; events come, without a lock held, from the
// threads that serve.
class DiskExport {
 public:
  DiskExport(const DiskLogOptions& options, DiskLog::Events events);
  ~DiskExport();

  // Serves the NBD client at the other end of a stream socket, which is taken over, until it leaves; any
  // number of clients, each on a thread of its own. The end of a client whose negotiation had come to its end
  // means that the mirror is gone, and what the guest writes from then on isn't seen: every block differs,
  // and a session has failed. Throws ERR_COLO_CLOSED, ERR_COLO_SOCKET.
  void serve(UniqueFd socket);

  // Two steps to have copies read from the NBD server at the other end of a connected stream socket, whose
  // export is this disk. The first never waits: from then on close_source() and close() reach it. The second
  // negotiates, and ends with ERR_COLO_CLOSED then. Throw ERR_COLO_CLOSED, ERR_COLO_DISK.
  std::shared_ptr<NbdClient> begin_source(UniqueFd socket, const std::string& export_name);
  void connect_source(const std::shared_ptr<NbdClient>& begun);
  void close_source();

  // For a copy. Throws ERR_COLO_DISK when there is no source.
  std::shared_ptr<NbdClient> source() const;
  // Throws ERR_COLO_DISK when no client is being served: without its mirror, what the guest writes isn't
  // seen.
  void require_mirror() const;

  // Those whose negotiation has come to its end.
  std::uint64_t clients() const;

  DiskLog& log() { return log_; }
  const std::string& id() const { return id_; }

  // Ends all clients and the source, and returns when no thread is left. No event comes after that, but a
  // session has failed. Idempotent.
  void close();

 private:
  struct Client {
    Client(UniqueFd socket, DiskLog& log) : connection(std::move(socket), log) {}
    NbdConnection connection;
    std::thread thread;
    bool in_transmission = false;  // guarded by `mutex_`, as the next
    bool ended = false;
  };

  DiskLog::Events until_closed(DiskLog::Events events) const;
  void run(Client& client);
  void reap_locked();
  void require_begun_locked(const std::shared_ptr<NbdClient>& source) const;

  const std::string id_;
  DiskLog log_;
  mutable std::mutex mutex_;  // guards everything below
  std::list<Client> clients_;
  std::shared_ptr<NbdClient> source_;  // negotiated
  std::shared_ptr<NbdClient> begun_;   // not yet
  bool closed_ = false;
  std::once_flag ended_;
};

}  // namespace colo
