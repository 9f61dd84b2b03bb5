/* A driver of two GPUs behind the real binding: an H100 that answers everything, an old board that does not. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, NOT_LOADED = 9 };
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { char legacy[16]; unsigned int domain, bus, device, id, subsystem; char bus_id[32]; } pci_t;

static const char *uuids[2] = {"GPU-aaaa1111-0000", "GPU-aaaa2222-0000"};
static int devices[2], started;

static int of(int *device) { return (int)(device - devices); }
__attribute__((destructor)) static void leave(void) { if (started) fprintf(stderr, "not shut down\n"); }

const char *nvmlErrorString(int code) { return code == NOT_LOADED ? "Driver Not Loaded" : "error"; }
int nvmlInitWithFlags(unsigned int flags) {
    if (getenv("STAND_IN_DOWN")) return NOT_LOADED;
    started++;
    return OK;
}
int nvmlShutdown(void) { started--; return OK; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, int **device) { *device = &devices[index]; return OK; }
int nvmlDeviceGetHandleByUUID(const char *uuid, int **device) {
    for (int i = 0; i < 2; i++) if (!strcmp(uuid, uuids[i])) { *device = &devices[i]; return OK; }
    return NOT_FOUND;
}
int nvmlDeviceGetName(int *device, char *name, unsigned int size) {
    strcpy(name, of(device) ? "Old Board" : "NVIDIA H100"); return OK;
}
int nvmlDeviceGetUUID(int *device, char *uuid, unsigned int size) { strcpy(uuid, uuids[of(device)]); return OK; }
int nvmlDeviceGetMemoryInfo(int *device, memory_t *memory) {
    if (of(device)) return UNSUPPORTED;
    memory->total = 80ull << 30;
    return OK;
}
int nvmlDeviceGetPciInfo_v3(int *device, pci_t *pci) {
    strcpy(pci->bus_id, of(device) ? "00000000:AF:00.0" : "00000000:3B:00.0"); return OK;
}
int nvmlDeviceGetCudaComputeCapability(int *device, int *major, int *minor) {
    *major = of(device) ? 7 : 9; *minor = 0; return OK;
}
int nvmlDeviceGetEnforcedPowerLimit(int *device, unsigned int *milliwatts) {
    *milliwatts = 650500; return of(device) ? UNSUPPORTED : OK;
}
int nvmlDeviceGetEccMode(int *device, unsigned int *current, unsigned int *pending) {
    *current = 0; *pending = 1; return of(device) ? UNSUPPORTED : OK;
}
int nvmlDeviceGetMaxClockInfo(int *device, unsigned int kind, unsigned int *megahertz) {
    *megahertz = 1980; return kind != 1 || of(device) ? UNSUPPORTED : OK;
}
int nvmlSystemGetDriverVersion(char *version, unsigned int size) { strcpy(version, "550.54.15"); return OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    const char *given = getenv("STAND_IN_CUDA");
    *version = given ? atoi(given) : 12040;
    return OK;
}
int nvmlDeviceGetP2PStatus(int *a, int *b, unsigned int index, unsigned int *status) {
    *status = getenv("STAND_IN_NVLINK") ? 0 : 5; return OK;
}
int nvmlDeviceGetTopologyCommonAncestor(int *a, int *b, unsigned int *level) { *level = 50; return OK; }
