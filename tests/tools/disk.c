/* A disk that tests can pull the plug of, or fill: loaded into factsync with LD_PRELOAD.
 *
 * Every change of a file or directory below DISK_FOLDER is written down in DISK_JOURNAL before it is done, and every sync as well, so that
 * `tests/it/crash/disk.rs` can work out what a power loss would have left. While the file DISK_FULL exists, no file there can grow.
 *
 * A record is written with one system call before the change itself, so a kill leaves the journal at most one change ahead, as a kill in
 * the middle of a system call would. A sync is only written down: the machine's own disk has no part in this. `sync_file_range` is not
 * even that, for it waits neither for the disk's own cache nor for the file's length.
 *
 * Record, little endian: u32 kind, u32 bytes of the path, u64 a, u64 bytes of the data, path, data.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITE = 1, TRUNCATE = 2, SYNC = 3, RENAME = 4, UNLINK = 5, CREATE = 6, MKDIR = 7 };

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static int journal = -2;
static const char *folder, *full;

static void begin(void) {
  pthread_mutex_lock(&order);
  if (journal != -2) return;
  folder = getenv("DISK_FOLDER");
  full = getenv("DISK_FULL");
  const char *path = getenv("DISK_JOURNAL");
  journal = folder && path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
}

static void end(void) {
  int kept = errno;
  pthread_mutex_unlock(&order);
  errno = kept;
}

static int inside(const char *path) {
  size_t length = folder ? strlen(folder) : 0;
  return length && strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static void put(uint32_t kind, const char *path, uint64_t a, const void *data, uint64_t length) {
  if (journal < 0) return;
  struct { uint32_t kind, path; uint64_t a, data; } head = {kind, (uint32_t)strlen(path), a, length};
  struct iovec parts[3] = {{&head, sizeof head}, {(void *)path, head.path}, {(void *)data, length}};
  syscall(SYS_writev, journal, parts, length ? 3 : 2);
}

/* The file that is open, if it is one of ours; a file without a name has nothing that a power loss could leave. */
static int named(int fd, char *path, int *nameless) {
  char link[32] = "/proc/self/fd/";
  char digits[12];
  int n = 0, value = fd;
  if (fd < 0) return 0;
  do digits[n++] = (char)('0' + value % 10); while (value /= 10);
  size_t at = strlen(link);
  while (n) link[at++] = digits[--n];
  link[at] = 0;
  ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  const char gone[] = " (deleted)";
  *nameless = length > (ssize_t)sizeof gone && strcmp(path + length - (sizeof gone - 1), gone) == 0;
  return inside(path);
}

/* Bytes of `length` that fit at `offset`. */
static size_t room(int fd, uint64_t offset, size_t length) {
  struct stat now;
  if (!full || syscall(SYS_faccessat, AT_FDCWD, full, F_OK) != 0 || fstat(fd, &now) != 0) return length;
  if (offset + length <= (uint64_t)now.st_size) return length;
  return offset < (uint64_t)now.st_size ? (size_t)((uint64_t)now.st_size - offset) : 0;
}

static ssize_t write_at(int fd, const void *data, size_t length, int64_t offset) {
  char path[PATH_MAX];
  int nameless = 0;
  begin();
  int ours = named(fd, path, &nameless);
  int64_t at = offset;
  if (ours && at < 0) {
    struct stat now;
    int append = fcntl(fd, F_GETFL) & O_APPEND;
    at = append && fstat(fd, &now) == 0 ? now.st_size : lseek(fd, 0, SEEK_CUR);
  }
  if (ours && length) {
    size_t fits = room(fd, (uint64_t)at, length);
    if (fits == 0) {
      errno = ENOSPC;
      end();
      return -1;
    }
    length = fits;
    if (!nameless) put(WRITE, path, (uint64_t)at, data, length);
  }
  ssize_t done = offset < 0 ? syscall(SYS_write, fd, data, length) : syscall(SYS_pwrite64, fd, data, length, offset);
  end();
  return done;
}

ssize_t write(int fd, const void *data, size_t length) { return write_at(fd, data, length, -1); }
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) { return write_at(fd, data, length, offset); }
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) { return write_at(fd, data, length, offset); }

static ssize_t writev_at(int fd, const struct iovec *parts, int count, int64_t offset) {
  ssize_t all = 0;
  for (int i = 0; i < count; i++) {
    if (!parts[i].iov_len) continue;
    ssize_t done = write_at(fd, parts[i].iov_base, parts[i].iov_len, offset < 0 ? -1 : offset + all);
    if (done < 0) return all ? all : -1;
    all += done;
    if ((size_t)done < parts[i].iov_len) break;
  }
  return all;
}

/* Of a pipe or a socket the parts stay together. */
ssize_t writev(int fd, const struct iovec *parts, int count) {
  char path[PATH_MAX];
  int nameless = 0;
  begin();
  int ours = named(fd, path, &nameless);
  end();
  return ours ? writev_at(fd, parts, count, -1) : syscall(SYS_writev, fd, parts, count);
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) { return writev_at(fd, parts, count, offset); }
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) { return writev_at(fd, parts, count, offset); }

int ftruncate(int fd, off_t length) {
  char path[PATH_MAX];
  int nameless = 0;
  begin();
  if (named(fd, path, &nameless) && !nameless) put(TRUNCATE, path, (uint64_t)length, NULL, 0);
  int done = (int)syscall(SYS_ftruncate, fd, length);
  end();
  return done;
}
int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

static int reserve(int fd, off_t offset, off_t length) {
  char path[PATH_MAX];
  int nameless = 0;
  begin();
  int ours = named(fd, path, &nameless);
  struct stat now;
  int done = 0, to = ours && fstat(fd, &now) == 0 && now.st_size < offset + length;
  if (ours && room(fd, (uint64_t)offset, (size_t)length) < (size_t)length) {
    errno = ENOSPC;
    done = -1;
  } else {
    if (to && !nameless) put(TRUNCATE, path, (uint64_t)(offset + length), NULL, 0);
    done = (int)syscall(SYS_fallocate, fd, 0, offset, length);
  }
  end();
  return done;
}
int fallocate(int fd, int mode, off_t offset, off_t length) {
  return mode ? (int)syscall(SYS_fallocate, fd, mode, offset, length) : reserve(fd, offset, length);
}
int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return fallocate(fd, mode, offset, length); }
int posix_fallocate(int fd, off_t offset, off_t length) { return reserve(fd, offset, length) ? errno : 0; }
int posix_fallocate64(int fd, off64_t offset, off64_t length) { return posix_fallocate(fd, offset, length); }

static int sync_one(int fd, long call) {
  char path[PATH_MAX];
  int nameless = 0;
  begin();
  int ours = named(fd, path, &nameless) && journal >= 0;
  if (ours && !nameless) put(SYNC, path, 0, NULL, 0);
  end();
  return ours ? 0 : (int)syscall(call, fd);
}
int fsync(int fd) { return sync_one(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_one(fd, SYS_fdatasync); }

static const char *absolute(int at, const char *path, char *buffer) {
  int nameless = 0;
  if (path[0] == '/') return path;
  if (at == AT_FDCWD) {
    if (!getcwd(buffer, PATH_MAX)) return path;
  } else if (!named(at, buffer, &nameless)) {
    return path;
  }
  strncat(buffer, "/", PATH_MAX - strlen(buffer) - 1);
  strncat(buffer, path, PATH_MAX - strlen(buffer) - 1);
  return buffer;
}

static int open_at(int at, const char *path, int flags, mode_t mode) {
  char buffer[PATH_MAX] = "";
  if (!(flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE) return (int)syscall(SYS_openat, at, path, flags, mode);
  begin();
  const char *whole = absolute(at, path, buffer);
  if (inside(whole)) {
    if (syscall(SYS_faccessat, AT_FDCWD, whole, F_OK) != 0) {
      if (flags & O_CREAT) put(CREATE, whole, 0, NULL, 0);
    } else if (flags & O_TRUNC) {
      put(TRUNCATE, whole, 0, NULL, 0);
    }
  }
  int done = (int)syscall(SYS_openat, at, path, flags, mode);
  end();
  return done;
}

#define MODE(last) \
  mode_t mode = 0; \
  va_list more; \
  va_start(more, last); \
  if ((last & O_CREAT) || (last & O_TMPFILE) == O_TMPFILE) mode = va_arg(more, mode_t); \
  va_end(more)
int open(const char *path, int flags, ...) { MODE(flags); return open_at(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags); return open_at(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags); return open_at(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags); return open_at(at, path, flags | O_LARGEFILE, mode); }

int renameat(int from_at, const char *from, int to_at, const char *to) {
  char one[PATH_MAX] = "", two[PATH_MAX] = "";
  begin();
  const char *source = absolute(from_at, from, one), *target = absolute(to_at, to, two);
  if (inside(source) || inside(target)) put(RENAME, source, 0, target, strlen(target));
  int done = (int)syscall(SYS_renameat2, from_at, from, to_at, to, 0);
  end();
  return done;
}
int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

int unlinkat(int at, const char *path, int flags) {
  char buffer[PATH_MAX] = "";
  begin();
  const char *whole = absolute(at, path, buffer);
  if (inside(whole)) put(UNLINK, whole, 0, NULL, 0);
  int done = (int)syscall(SYS_unlinkat, at, path, flags);
  end();
  return done;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int at, const char *path, mode_t mode) {
  char buffer[PATH_MAX] = "";
  begin();
  const char *whole = absolute(at, path, buffer);
  if (inside(whole)) put(MKDIR, whole, 0, NULL, 0);
  int done = (int)syscall(SYS_mkdirat, at, path, mode);
  end();
  return done;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
