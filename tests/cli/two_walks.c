// two-walks MIB ROUNDS: two functions walk two arrays. The large one does not fit into the budget of the test, so walk_large waits;
// the small one is touched all the time. With a third argument the large array is also filled by read(2), in fill_by_read.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static unsigned long state = 88172645463325252ul;

static unsigned long next_random(void) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

static unsigned long walk_large(const volatile char* data, size_t size, int touches) {
  unsigned long sum = 0;
  while (touches-- > 0) sum += (unsigned long)data[next_random() % size];
  return sum;
}

static unsigned long walk_small(const volatile char* data, size_t size, int touches) {
  unsigned long sum = 0;
  while (touches-- > 0) sum += (unsigned long)data[next_random() % size];
  return sum;
}

static int fill_by_read(char* data, size_t size, int touches) {
  const int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  while (touches-- > 0) {
    if (read(fd, data + next_random() % (size - 64), 64) != 64) return -1;
  }
  return close(fd);
}

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const size_t large_size = (size_t)atoi(argv[1]) << 20, small_size = 1 << 20;
  char* large = malloc(large_size);
  char* small = malloc(small_size);
  if (large == NULL || small == NULL) return 1;
  for (size_t i = 0; i < large_size; i += 64) memcpy(large + i, &(unsigned long){next_random() & 0xffffff}, sizeof(long));
  memset(small, 1, small_size);
  unsigned long sum = 0;
  for (int round = atoi(argv[2]); round > 0; --round) {
    sum += walk_large(large, large_size, 2000);
    sum += walk_small(small, small_size, 20000);
    if (argc > 3 && fill_by_read(large, large_size, 2000) != 0) return 1;
  }
  printf("%lu\n", sum);
  return 0;
}
