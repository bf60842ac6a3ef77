// Linked statically: nothing can be loaded into it, so `whimbrel run` must refuse it.
#include <stdio.h>

int main(void) {
  puts("ran");
  return 0;
}
