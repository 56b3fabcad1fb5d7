// segment MODEL.pt2 PICTURE MASK.png: the class of every pixel of a picture (PNG or PPM), by a model that
// `setr-fast export --format cpp` compiled. The mask is a grey PNG whose values are the classes.
#include <ATen/ops/from_blob.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <vector>

#include "pictures.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s MODEL.pt2 PICTURE.png|.ppm MASK.png\n", argv[0]);
    return 2;
  }
  try {
    pictures::Picture picture = pictures::read(argv[2]);
    const c10::InferenceMode no_gradients;
    torch::inductor::AOTIModelPackageLoader model(argv[1]);
    const auto bytes = at::from_blob(picture.rgb.data(), {1, picture.height, picture.width, 3}, at::kByte);
    const auto started = std::chrono::steady_clock::now();
    const at::Tensor classes = model.run({bytes})[0].contiguous();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - started;
    const auto depth = static_cast<int>(classes.element_size());  // 2 above 256 classes
    const auto* values = static_cast<const uint8_t*>(classes.const_data_ptr());
    pictures::write_png(argv[3], values, picture.height, picture.width, depth);
    std::printf("%s: %lld x %lld pixels in %.3f s\n", argv[3], static_cast<long long>(picture.height),
                static_cast<long long>(picture.width), seconds.count());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "segment: %s\n", error.what());
    return 1;
  }
}
