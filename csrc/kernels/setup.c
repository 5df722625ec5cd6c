/* Which kernel tables this build holds, which of them this machine runs, and the one in use. */
#define _GNU_SOURCE /* sched_getaffinity, where there is one */
#include <sched.h>
#include <string.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels/kernels.h"
#include "wfcast.h"

const wf_kernels *wf_k = &wf_kernels_scalar;

enum { MOST = 4 };
static const wf_kernels *tables[MOST];
static const char *names[MOST + 1];

/* `name` is an entry of the comma or space separated list. */
static int listed(const char *list, const char *name)
{
    const size_t length = strlen(name);
    while (list && *list) {
        const size_t word = strcspn(list, ", ");
        if (word == length && strncmp(list, name, length) == 0) {
            return 1;
        }
        list += word;
        list += strspn(list, ", ");
    }
    return 0;
}

void wf_setup(const char *disabled)
{
    if (names[0]) { /* a second module object must not change kernels that may be running */
        return;
    }
    const wf_kernels *found[MOST];
    int n = 0;
#if defined(WF_X86)
    unsigned a, b, c, d;
    __builtin_cpu_init();
    /* asked by hand, as clang's builtin does not know it */
    const int f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
        found[n++] = &wf_kernels_avx512;
    }
    if (avx2) {
        found[n++] = &wf_kernels_avx2;
    }
#elif defined(WF_ARM64)
    found[n++] = &wf_kernels_neon;
#endif
    found[n++] = &wf_kernels_scalar;
    int kept = 0;
    for (int i = 0; i < n; i++) { /* the scalar set is always there */
        if (found[i] == &wf_kernels_scalar || !listed(disabled, found[i]->name)) {
            tables[kept] = found[i];
            names[kept++] = found[i]->name;
        }
    }
    names[kept] = NULL;
    wf_k = tables[0];
}

const char *const *wf_isa_available(void)
{
    return names;
}

const char *wf_isa(void)
{
    return wf_k->name;
}

int wf_isa_select(const char *name)
{
    for (int i = 0; names[i]; i++) {
        if (strcmp(names[i], name) == 0) {
            wf_k = tables[i];
            return 0;
        }
    }
    return -1;
}

int wf_cpu_count(void)
{
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        return CPU_COUNT(&set);
    }
#endif
    const long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (int)count : 1;
}
