/*
 * A database whose clients are outside: SQLite in FILE, with durable commits. TCP port 5004, a line a
 * request: "put N" inserts the row N in a transaction of its own and answers "ok N" when it is committed;
 * "check" runs SQLite's own integrity check and answers "clean COUNT HIGHEST" or "corrupt ...". Anything that
 * fails is answered by "error ..." and announced on the console. Usage: sqld FILE wal|delete
 */
#include <poll.h>
#include <sqlite3.h>
#include <string.h>

#include "util.h"

#define PORT 5004
#define CONNECTIONS_MAX 16
#define LINE_MAX 64
#define ANSWER_MAX 200

struct connection {
  int fd;
  size_t length;
  char line[LINE_MAX];
};

static struct connection connections[CONNECTIONS_MAX];
static int connection_count;
static sqlite3* database;
static sqlite3_stmt *insert, *count, *integrity;

static void require(int result, int expected, const char* what) {
  if (result == expected) return;
  printf("GUEST-FAILED sqld: %s: %s\n", what, database ? sqlite3_errmsg(database) : sqlite3_errstr(result));
  exit(1);
}

static void run_sql(const char* text) {
  require(sqlite3_exec(database, text, NULL, NULL, NULL), SQLITE_OK, text);
}

static void prepare(sqlite3_stmt** statement, const char* text) {
  require(sqlite3_prepare_v2(database, text, -1, statement, NULL), SQLITE_OK, text);
}

static void open_database(const char* file, const char* journal) {
  char text[64];
  require(sqlite3_open(file, &database), SQLITE_OK, file);
  snprintf(text, sizeof text, "PRAGMA journal_mode=%s", journal);
  run_sql(text);
  run_sql("PRAGMA synchronous=FULL");
  /* A second column and an index, so that one row touches several pages and a torn transaction shows. */
  run_sql("CREATE TABLE IF NOT EXISTS rows (n INTEGER PRIMARY KEY, text TEXT NOT NULL)");
  run_sql("CREATE INDEX IF NOT EXISTS by_text ON rows (text)");
  prepare(&insert, "INSERT INTO rows VALUES (?1, hex(?1 * 2654435761 % 4294967296) || hex(zeroblob(100)))");
  prepare(&count, "SELECT count(*), coalesce(max(n), 0) FROM rows");
  prepare(&integrity, "PRAGMA integrity_check(1)");
}

static void fail(char* answer) {
  snprintf(answer, ANSWER_MAX, "error %s\n", sqlite3_errmsg(database));
  printf("SQLD FAILED %s", answer);
  fflush(stdout);
}

static void put(sqlite3_int64 number, char* answer) {
  sqlite3_bind_int64(insert, 1, number);
  if (sqlite3_step(insert) == SQLITE_DONE)
    snprintf(answer, ANSWER_MAX, "ok %lld\n", number);
  else
    fail(answer);
  sqlite3_reset(insert);
}

static void check(char* answer) {
  if (sqlite3_step(integrity) != SQLITE_ROW || sqlite3_step(count) != SQLITE_ROW) {
    fail(answer);
  } else {
    const char* verdict = (const char*)sqlite3_column_text(integrity, 0);
    if (!strcmp(verdict, "ok"))
      snprintf(answer, ANSWER_MAX, "clean %lld %lld\n", sqlite3_column_int64(count, 0),
               sqlite3_column_int64(count, 1));
    else
      snprintf(answer, ANSWER_MAX, "corrupt %.150s\n", verdict);
  }
  sqlite3_reset(integrity);
  sqlite3_reset(count);
}

static void answer_line(const struct connection* c) {
  char answer[ANSWER_MAX];
  if (!strncmp(c->line, "put ", 4))
    put(atoll(c->line + 4), answer);
  else if (!strcmp(c->line, "check"))
    check(answer);
  else
    snprintf(answer, sizeof answer, "error no such request\n");
  send(c->fd, answer, strlen(answer), MSG_NOSIGNAL);
}

/* Returns false when the connection is over. */
static int serve(struct connection* c) {
  char* end;
  ssize_t n = recv(c->fd, c->line + c->length, LINE_MAX - c->length, 0);
  if (n <= 0) return 0;
  c->length += (size_t)n;
  while ((end = memchr(c->line, '\n', c->length))) {
    *end++ = 0;
    answer_line(c);
    c->length -= (size_t)(end - c->line);
    memmove(c->line, end, c->length);
  }
  return c->length < LINE_MAX;
}

int main(int argc, char** argv) {
  if (argc != 3) return 64;
  struct pollfd polled[1 + CONNECTIONS_MAX] = {{.fd = open_port(SOCK_STREAM, PORT), .events = POLLIN}};
  go_to_background();
  /* Not before: SQLite's locks belong to the process that took them. */
  open_database(argv[1], argv[2]);
  for (;;) {
    for (int i = 0; i < connection_count; i++)
      polled[1 + i] = (struct pollfd){.fd = connections[i].fd, .events = POLLIN};
    int full = connection_count == CONNECTIONS_MAX;
    polled[0].events = full ? 0 : POLLIN;
    if (poll(polled, (nfds_t)(1 + connection_count), -1) < 0) die("poll");
    for (int i = connection_count - 1; i >= 0; i--) {
      if (!polled[1 + i].revents || serve(&connections[i])) continue;
      close(connections[i].fd);
      connections[i] = connections[--connection_count];
    }
    int fd = polled[0].revents ? accept(polled[0].fd, NULL, NULL) : -1;
    if (fd >= 0) connections[connection_count++] = (struct connection){.fd = fd};
  }
}
