/* Whether a compiler can make and load what the other sources here need; `fsmer.kernels.describe` asks. */

#include <stdint.h>

typedef uint8_t bytes __attribute__((vector_size(16)));
typedef int32_t bits __attribute__((vector_size(64)));

int64_t probe(bytes values) { return __builtin_convertvector(values, bits)[0]; }
