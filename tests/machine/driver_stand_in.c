/* A GPU driver behind the real binding that answers what a script says. */
#define _POSIX_C_SOURCE 200809L
#include <time.h>
#include "stand_in_script.h"

enum { TOTAL_ENERGY = 83, POWER_AVERAGE = 185, POWER_INSTANT = 186, STAIR_MS = 100 };

typedef unsigned long long ull;
typedef struct { ull total, free, used; } memory_t;
typedef struct { uint version; ull total, reserved, free, used; } memory_v2_t;
typedef struct { char legacy[16]; uint domain, bus, device, id, subsystem; char bus_id[32]; } pci_t;
typedef struct { uint gpu, memory; } utilization_t;
typedef struct { uint version, sensor; int celsius; } temperature_t;
typedef struct { uint pid; ull used; uint gpu_instance, compute_instance; } process_t;
typedef union { uint u; ull ull; } value_t;
typedef struct { uint field, scope; long long when, latency; uint type; int status; value_t value; } field_t;

static double joules[GPUS];
static long long first_ms, last_stair[GPUS];
static int counting;

static long long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

__attribute__((constructor)) static void enter(void) {
    first_ms = now_ms();
    for (int i = 0; i < GPUS; i++) {
        boards[i] = (device_t){i, -1};
        for (int k = 0; k < SLICES; k++) slices[i][k] = (device_t){i, k};
    }
}

__attribute__((destructor)) static void leave(void) {
    if (started) fprintf(stderr, "not shut down\n");
}

/* The library and the system */

const char *nvmlErrorString(int status) { return status == NOT_LOADED ? "Driver Not Loaded" : "error"; }

int nvmlInitWithFlags(uint flags) {
    FILE *file = script();
    if (!file) return NOT_LOADED;
    fclose(file);
    __sync_fetch_and_add(&started, 1);
    return OK;
}

int nvmlShutdown(void) {
    if (!started) return UNINITIALIZED;
    __sync_fetch_and_sub(&started, 1);
    return OK;
}

int nvmlSystemGetDriverVersion(char *version, uint size) {
    char value[TEXT];
    if (!started) return UNINITIALIZED;
    if (!lookup("driver", value)) return UNSUPPORTED;
    return (uint)snprintf(version, size, "%s", value) < size ? OK : TOO_SMALL;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = (int)setting("cuda");
    return !started ? UNINITIALIZED : *version ? OK : UNSUPPORTED;
}

/* Handles */

int nvmlDeviceGetCount_v2(uint *count) { *count = gpu_count(); return started ? OK : UNINITIALIZED; }

int nvmlDeviceGetHandleByIndex_v2(uint index, device_t **device) {
    if (!started) return UNINITIALIZED;
    if (index >= gpu_count()) return INVALID;
    *device = &boards[index];
    return reach(*device);
}

static int has(device_t *candidate, const char *key, const char *wanted) {
    char value[TEXT];
    return lookup_of(candidate, key, value) && !strcasecmp(value, wanted);
}

static int find(const char *key, const char *wanted, device_t **device) {
    for (uint i = 0; i < gpu_count(); i++) {
        if (has(&boards[i], key, wanted)) return reach(*device = &boards[i]);
        for (uint k = 0; k < slices_of(&boards[i]); k++)
            if (has(&slices[i][k], key, wanted)) return reach(*device = &slices[i][k]);
    }
    return started ? NOT_FOUND : UNINITIALIZED;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device_t **device) { return find("uuid", uuid, device); }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, device_t **device) { return find("bus", bus, device); }

int nvmlDeviceGetIndex(device_t *device, uint *index) { /* a slice's is the one that gives its handle */
    *index = (uint)(device->slice < 0 ? device->gpu : device->slice);
    return reach(device);
}

/* MIG */

int nvmlDeviceGetMigMode(device_t *device, uint *current, uint *pending) {
    int status = whole(device, "mig", 1, current);
    if (!status) *pending = *current = *current > 0;
    return status;
}

int nvmlDeviceGetMaxMigDeviceCount(device_t *device, uint *count) {
    *count = slices_of(device) ? SLICES : 0;
    return reach(device);
}

int nvmlDeviceGetMigDeviceHandleByIndex(device_t *device, uint index, device_t **slice) {
    if (device->slice >= 0 || index >= SLICES) return INVALID;
    *slice = &slices[device->gpu][index];
    return reach(device) ? reach(device) : index < slices_of(device) ? OK : NOT_FOUND;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t *device, device_t **board) {
    int status = reach(device);
    *board = &boards[device->gpu];
    return status ? status : device->slice < 0 ? INVALID : OK;
}

int nvmlDeviceIsMigDeviceHandle(device_t *device, uint *is_slice) {
    *is_slice = device->slice >= 0;
    return reach(device);
}

/* Calls that tell one number. */
#define TELLS(call, key, scale) \
    int nvmlDeviceGet##call(device_t *device, uint *value) { return whole(device, key, scale, value); }
TELLS(GpuInstanceId, "instance", 1)
TELLS(NumGpuCores, "cores", 1)
TELLS(EnforcedPowerLimit, "power_limit_watts", 1000)
TELLS(PowerUsage, "power_watts", 1000)

/* What the device is */

int nvmlDeviceGetName(device_t *device, char *name, uint size) { return copied(device, "name", name, size); }
int nvmlDeviceGetUUID(device_t *device, char *uuid, uint size) { return copied(device, "uuid", uuid, size); }

int nvmlDeviceGetPciInfo_v3(device_t *device, pci_t *pci) {
    return copied(device, "bus", pci->bus_id, sizeof pci->bus_id);
}

int nvmlDeviceGetCudaComputeCapability(device_t *device, int *major, int *minor) {
    char value[TEXT];
    int status = text(device, "capability", value);
    return status ? status : sscanf(value, "%d.%d", major, minor) == 2 ? OK : INVALID;
}

int nvmlDeviceGetEccMode(device_t *device, uint *current, uint *pending) {
    *pending = 1;
    return whole(device, "ecc", 1, current);
}

int nvmlDeviceGetMaxClockInfo(device_t *device, uint kind, uint *megahertz) {
    return kind == 1 ? whole(device, "max_sm_clock", 1, megahertz) : UNSUPPORTED;
}

int nvmlDeviceGetP2PStatus(device_t *a, device_t *b, uint index, uint *status) {
    *status = setting("nvlink") ? 0 : 5;
    return reach(a) ? reach(a) : reach(b);
}

int nvmlDeviceGetTopologyCommonAncestor(device_t *a, device_t *b, uint *level) {
    *level = 50;
    return reach(a) ? reach(a) : reach(b);
}

/* What it does now */

static int memory_of(device_t *device, double *total, double *used, double *reserved) {
    *used = *reserved = 0;
    number(device, "memory_used", used);
    number(device, "memory_reserved", reserved);
    return number(device, "memory_total", total);
}

int nvmlDeviceGetMemoryInfo_v2(device_t *device, memory_v2_t *memory) {
    char given[TEXT];
    double total, used, reserved;
    int status = memory_of(device, &total, &used, &reserved);
    if (!status && lookup_of(device, "memory_v2", given)) status = text(device, "memory_v2", given);
    if (!status && memory->version != (sizeof *memory | 2u << 24)) status = WRONG_VERSION;
    if (!status) *memory = (memory_v2_t){memory->version, total, reserved, total - used - reserved, used};
    return status;
}

int nvmlDeviceGetMemoryInfo(device_t *device, memory_t *memory) { /* `used` has the reserved part in it */
    double total, used, reserved;
    int status = memory_of(device, &total, &used, &reserved);
    if (!status) *memory = (memory_t){total, total - used - reserved, used + reserved};
    return status;
}

int nvmlDeviceGetUtilizationRates(device_t *device, utilization_t *rates) { /* not while MIG is on */
    rates->memory = 0;
    return !reach(device) && slices_of(device) ? UNSUPPORTED : whole(device, "utilization", 1, &rates->gpu);
}

int nvmlDeviceGetTemperature(device_t *device, uint sensor, uint *celsius) {
    return sensor ? INVALID : whole(device, "temperature", 1, celsius);
}

int nvmlDeviceGetTemperatureV(device_t *device, temperature_t *temperature) {
    if (temperature->version != (sizeof *temperature | 1u << 24)) return WRONG_VERSION;
    return nvmlDeviceGetTemperature(device, temperature->sensor, (uint *)&temperature->celsius);
}

int nvmlDeviceGetClockInfo(device_t *device, uint kind, uint *megahertz) {
    return kind > 2 ? UNSUPPORTED : whole(device, kind == 2 ? "memory_clock" : "sm_clock", 1, megahertz);
}

int nvmlDeviceGetCurrentClocksEventReasons(device_t *device, ull *reasons) {
    double given;
    int status = number(device, "reasons", &given);
    if (!status) *reasons = (ull)given;
    return status;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(device_t *device, ull *reasons) {
    return nvmlDeviceGetCurrentClocksEventReasons(device, reasons);
}

/* Power, by a key of its own if it has one and otherwise as power_watts says. */
static int power(device_t *device, const char *key, uint *milliwatts) {
    char given[TEXT];
    return whole(device, lookup_of(device, key, given) ? key : "power_watts", 1000, milliwatts);
}

/* Adds what was drawn since the last step, at the power of now; so it never goes back when the power changes. */
static ull counted(int gpu, double watts) {
    while (__sync_lock_test_and_set(&counting, 1));
    long long stair = (now_ms() - first_ms) / STAIR_MS;
    joules[gpu] += watts * (double)(stair - last_stair[gpu]) * STAIR_MS / 1000;
    last_stair[gpu] = stair;
    ull millijoules = (ull)(joules[gpu] * 1000 + 0.5);
    __sync_lock_release(&counting);
    return millijoules;
}

int nvmlDeviceGetTotalEnergyConsumption(device_t *device, ull *millijoules) {
    char given[TEXT];
    double watts = 0;
    int scripted = lookup_of(device, "counter", given) != NULL;
    int status = scripted ? text(device, "counter", given) : number(device, "power_watts", &watts);
    if (status) return status;
    if (scripted && strcmp(given, "frozen")) *millijoules = (ull)(strtod(given, NULL) * 1000 + 0.5);
    else *millijoules = counted(device->gpu, watts);
    return OK;
}

static int answer(device_t *device, field_t *field) {
    field->value.ull = 0;
    field->type = field->field == TOTAL_ENERGY ? 3 : 1; /* unsigned long long, unsigned int */
    if (field->scope) return UNSUPPORTED; /* of the memory or the whole module */
    switch (field->field) {
    case TOTAL_ENERGY: return nvmlDeviceGetTotalEnergyConsumption(device, &field->value.ull);
    case POWER_AVERAGE: return power(device, "average_power", &field->value.u);
    case POWER_INSTANT: return power(device, "instant_power", &field->value.u);
    default: return UNSUPPORTED;
    }
}

int nvmlDeviceGetFieldValues(device_t *device, int count, field_t *fields) {
    int status = reach(device);
    for (int i = 0; !status && i < count; i++) fields[i].status = answer(device, &fields[i]);
    return status;
}

/* Processes */

static int nobody(device_t *device, uint *count) { *count = 0; return reach(device); }

int nvmlDeviceGetComputeRunningProcesses_v3(device_t *device, uint *count, process_t *processes) {
    char value[TEXT], *rest, *one;
    uint found = 0, room = processes ? *count : 0;
    if (!lookup_of(device, "processes", value)) return nobody(device, count);
    int status = text(device, "processes", value);
    if (status) return status;
    for (one = strtok_r(value, ",", &rest); one; one = strtok_r(NULL, ",", &rest), found++) {
        char *bytes = strchr(one, ':'); /* without bytes: the driver doesn't say */
        if (found < room)
            processes[found] = (process_t){atoi(one), bytes ? strtoull(bytes + 1, NULL, 10) : ~0ull, ~0u, ~0u};
    }
    *count = found;
    return found > room ? TOO_SMALL : OK;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t *device, uint *count, process_t *processes) {
    return nobody(device, count);
}

int nvmlDeviceGetMPSComputeRunningProcesses_v3(device_t *device, uint *count, process_t *processes) {
    return nobody(device, count);
}
